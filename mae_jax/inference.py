"""A trained model in three lines: features of images, reconstructions of images.

model = mae_jax.load("runs/vit_l")             # or a file or folder of another project
images = model.load_images("photos")           # a folder, a glob pattern or a list of files
features = model.features(images)              # [N, D]
views = model.reconstruct(images)              # original, masked, predicted, pasted
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax import convert, data
from mae_jax.convert import surgery
from mae_jax.models import factory, targets
from mae_jax.models.reconstruct import Reconstruction, reconstruct
from mae_jax.ops import masking
from mae_jax.ops.patches import grid_size, patchify, to_float
from mae_jax.ops.rng import stream_key
from mae_jax.runtime import extensions, filesystem
from mae_jax.runtime.errors import UsageError, require

POOLS = ("mean", "cls", "patches")
_FAR_AWAY = 100.0  # deviations from the mean that no pixel has


def load(path: str, *, dtype: str = "auto", ema: bool = False) -> "Pretrained":
    """Loads a model with its weights; nothing of it is trained or random afterwards.

    Args:
      path: a run (its newest step), one of its steps, or weights of any kind that
        `mae_jax.tools.convert` reads (docs/weights.md).
      dtype: of the arithmetic; "auto" is bfloat16 on accelerators and float32 on CPU.
      ema: the averaged weights of a run that kept them.

    Raises:
      UsageError: there is none, it is damaged, or it is not whole.
    """
    path = filesystem.expand(path)
    model = convert.load(path, ema=ema)
    model.report.check()
    return Pretrained(model, path, dtype=dtype)


def describe(model: convert.Weights) -> str:
    """What a model is, on one line: size, shape, images, decoder and target or head."""
    fields = model.fields
    size, patch = ("x".join(map(str, fields[key])) for key in ("image_size", "patch_size"))
    text = (
        f"ViT-{model.metadata['model']['size']}: {fields['depth']} blocks of width "
        f"{fields['embed_dim']}, {fields['num_heads']} heads, images {size}x{fields['channels']}, "
        f"patches {patch}"
    )
    if model.kind == "mae":
        target = targets.describe(model.metadata["target"])
        return f"{text}; decoder of {fields['decoder_depth']} blocks, target {target}"
    classes = fields["num_classes"]
    return f"{text}; {f'{classes} classes, ' * bool(classes)}pool {fields['pool']}"


class Pretrained:
    """A model as functions of images.

    Images are [N, H, W, C] of the model's size: uint8, or float in the units of `pixels`, which
    are [0, 1] for ordinary photos. `load_images` makes them of files.

    Attributes:
      metadata: what the model is (see docs/checkpoints.md).
      params: all parameters by name.
      image_size: (H, W).
      channels: C.
      grid: patches (rows, columns).
      pixels: mean and std, per channel.
    """

    def __init__(self, model: convert.Weights, path: str, *, dtype: str = "auto"):
        self._model, self._path, self._dtype = model, path, dtype
        self.metadata, self.params = model.metadata, model.params
        self.image_size: tuple[int, int] = model.fields["image_size"]
        self.channels: int = model.fields["channels"]
        self.grid = grid_size(self.image_size, model.fields["patch_size"])
        self.pixels = {key: tuple(self.metadata["data"][key]) for key in ("mean", "std")}
        self._compiled: dict[Any, Any] = {}

    def __repr__(self) -> str:
        step = self.metadata.get("step")
        where = f"{self._path}, step {step:,}" if step else self._path
        return f"<Pretrained {where}: {describe(self._model)}>"

    def load_images(self, files: str | Path | Sequence[str | Path]) -> np.ndarray:
        """Reads images, all into memory, through the evaluation transform of the model.

        Args:
          files: paths of images; or one path: a folder, with everything below it, a glob pattern,
            a list file (.txt, .csv) or an image.

        Returns:
          [N, H, W, C], in the order of the list or of the sorted paths; uint8, or float32 where
          the model was trained with `data.dtype` float32.

        Raises:
          UsageError: there are no images, or one is missing or cannot be read; names it.
        """
        if isinstance(files, (str, Path)):
            source = data.image_source(str(files))
            files = [source.describe(i) for i in range(len(source))]
        require(len(files) > 0, "no image files to load")
        return data.load_images(
            files,
            image_size=self.image_size,
            channels=self.channels,
            data_config=self.metadata["config"]["data"],
        )

    # Features.

    def features(
        self, images: np.ndarray, *, pool: str = "mean", layer: int = -1, batch_size: int = 64
    ) -> np.ndarray:
        """Features of whole images, nothing masked: float32 [N, D], or [N, L, D] for "patches".

        Args:
          images: see the class.
          pool: "mean" of the patch tokens, the class token "cls", or all "patches" in image order.
          layer: block whose output is taken, from 0, or from the end: -1 is the last. Behind the
            last one comes the final norm, behind others none.
          batch_size: images at once.

        Raises:
          UsageError: images of another shape, no such pool or layer.
        """
        images = self._checked(images)
        require(batch_size > 0, f"batch_size={batch_size} must be positive")
        key = ("features", pool, layer)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(self.feature_function(pool=pool, layer=layer))
        variables = self.encoder_variables
        starts = range(0, len(images), batch_size)
        parts = [self._compiled[key](variables, images[i : i + batch_size]) for i in starts]
        return np.concatenate([np.asarray(part) for part in parts])

    def feature_function(self, *, pool: str, layer: int) -> Callable[[Any, jax.Array], jax.Array]:
        """`features` as a function of (`encoder_variables`, images), to be compiled.

        Raises:
          UsageError: no such pool or layer.
        """
        encoder = self._encoder
        depth = encoder.depth
        require(pool in POOLS, f"--pool={pool} is not one of {', '.join(POOLS)}")
        require(
            -depth <= layer < depth,
            f"layer {layer} is none of {depth} blocks (0 to {depth - 1}, or -{depth} to -1)",
        )
        last = layer % depth == depth - 1

        def function(variables: Any, images: jax.Array) -> jax.Array:
            patches = to_float(patchify(images, encoder.patch_size), **self.pixels)
            apply = functools.partial(encoder.apply, variables, patches)
            if last and encoder.pool == "mean" and pool == "mean":
                return apply(method=encoder.features)  # what its head saw
            num_blocks = None if last else layer % depth + 1
            tokens: Any = apply(num_blocks=num_blocks, method=encoder.encode)
            tokens = tokens.astype(jnp.float32)
            if pool == "cls":
                return tokens[:, 0]
            return tokens[:, 1:] if pool == "patches" else tokens[:, 1:].mean(axis=1)

        return function

    @functools.cached_property
    def encoder_variables(self) -> Any:
        """First argument of `feature_function`."""
        return jax.device_put(surgery.encoder_only(self._model).variables())

    @functools.cached_property
    def _encoder(self) -> Any:
        return factory.build_vit(surgery.encoder_only(self._model).fields, dtype=self._dtype)

    # Reconstructions.

    def reconstruct(
        self,
        images: np.ndarray,
        *,
        mask_ratio: float | None = None,
        mask: np.ndarray | None = None,
        priority: np.ndarray | None = None,
        mask_kind: str | None = None,
        seed: int = 0,
    ) -> Reconstruction:
        """What the model makes of images with hidden patches: arrays of NumPy.

        A model of normalized pixels is shown with the true mean and deviation of every patch,
        which it never knew (`target.caption` says so).

        Args:
          images: see the class.
          mask_ratio: share of the patches that is hidden; None for that of the training.
          mask: or which patches are: 1 hides, 0 shows; [L], [rows, columns], or one for each image
            with as many hidden.
          priority: or which are hidden first: numbers in the same shapes, highest first, equal ones
            at random, until `mask_ratio` is hidden. `patches.patch_means` makes it of pixels.
          mask_kind: see `masking.find`; None for that of the training.
          seed: of the masks; the same seed gives the same masks, image by image.

        Raises:
          UsageError: no decoder, images or mask of another shape, an impossible ratio.
        """
        model = self._autoencoder
        images = self._checked(images)
        if mask is not None:
            alone = all(x is None for x in (mask_ratio, mask_kind, priority))
            require(alone, "a mask says which patches are hidden: leave out its ratio and kind")
            hidden = self._given(np.asarray(mask), len(images))
        else:
            require(
                priority is None or mask_kind is None,
                "a priority says which patches are hidden: leave out the kind of mask",
            )
            hidden = self._drawn(len(images), mask_ratio, mask_kind, priority, seed)
        if "reconstruct" not in self._compiled:
            target = self.target
            self._compiled["reconstruct"] = jax.jit(
                lambda p, x, hidden, arrays: reconstruct(model, p, x, hidden, target, arrays)
            )
        arrays = self.target.arrays
        views = self._compiled["reconstruct"](self._decoder_params, images, hidden, arrays)
        return jax.device_get(views)

    @functools.cached_property
    def target(self) -> targets.Target:
        """What the model was trained to predict."""
        spec = factory.patch_spec(self._model.fields, self.metadata["data"])
        return targets.restore(self.metadata["target"], spec, self._model.target)

    @functools.cached_property
    def _autoencoder(self) -> Any:
        require(
            self._model.kind == "mae",
            f"no decoder weights in {self._path} (encoder-only export): take the run it was made "
            "from, or a file that has them (official: mae_visualize_*, *_full)",
        )
        return factory.build_mae(self._model.fields, dtype=self._dtype)

    @functools.cached_property
    def _decoder_params(self) -> Any:
        return jax.device_put(self._model.variables()["params"])

    def _drawn(
        self,
        number: int,
        ratio: float | None,
        kind: str | None,
        priority: np.ndarray | None,
        seed: int,
    ) -> masking.Masking:
        trained = self.metadata["mask"]
        ratio = float(trained["ratio"] if ratio is None else ratio)
        if kind is None:
            noise = extensions.find_loaded(masking.MASKS, str(trained["kind"]))
        else:
            noise = extensions.find(masking.MASKS, kind, "--mask_kind")
        key = stream_key(seed, "picture_mask")
        try:
            if priority is None:
                hidden = masking.masks(key, number, self.grid, ratio, noise)
            else:
                values = self._of_patches(np.asarray(priority, np.float32), number, "priority")
                require(bool(np.isfinite(values).all()), "a priority must be finite numbers")
                hidden = masking.from_priority(jnp.asarray(values), ratio, key)
        except ValueError as error:
            raise UsageError(f"{error} (--mask_ratio={ratio})") from error
        require(
            hidden.len_keep < hidden.ids_shuffle.shape[1], f"--mask_ratio={ratio} hides no patch"
        )
        return hidden

    def _of_patches(self, values: np.ndarray, number: int, name: str) -> np.ndarray:
        """`values` of the patches of all images, [number, L]."""
        patches = self.grid[0] * self.grid[1]
        if values.shape in ((patches,), self.grid):
            values = np.broadcast_to(values.reshape(1, patches), (number, patches))
        require(
            values.shape in ((number, patches), (number, *self.grid)),
            f"the {name} is {values.shape}; {number} images have {self.grid} patches each",
        )
        return values.reshape(number, patches)

    def _given(self, mask: np.ndarray, number: int) -> masking.Masking:
        mask = self._of_patches(mask, number, "mask")
        require(bool(np.isin(mask, (0, 1)).all()), "a mask holds 1 (hidden) and 0 (visible) alone")
        mask = mask.astype(np.int32)
        hidden, patches = mask.sum(axis=1), mask.shape[1]
        require(
            int(hidden.min()) == int(hidden.max()) and 0 < hidden[0] < patches,
            f"a mask must hide some of the {patches} patches and show some, as many of every "
            f"image; this hides {sorted(set(hidden.tolist()))}",
        )
        return masking.from_mask(jnp.asarray(mask), patches - int(hidden[0]))

    def _checked(self, images: Any) -> np.ndarray:
        images, wanted = np.asarray(images), (*self.image_size, self.channels)
        require(
            images.ndim == 4 and images.shape[1:] == wanted and len(images) > 0,
            f"images of shape {images.shape}: the model takes [N, {', '.join(map(str, wanted))}] "
            "(load_images makes them of files)",
        )
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        require(
            images.dtype == np.uint8 or floats,
            f"images of {images.dtype}: make them uint8, or float in the units of {self.pixels}",
        )
        if floats:  # bytes that became floats are a thousand deviations away
            away = np.abs(images - np.array(self.pixels["mean"])) / np.array(self.pixels["std"])
            require(
                bool(away.max() < _FAR_AWAY),
                f"images up to {images.max():.4g}, but the model was trained on pixels of "
                f"{self.pixels}: divide by 255, or give uint8",
            )
        return images
