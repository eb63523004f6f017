"""Features and reconstructions of images from a trained model.

model = mae_jax.load("runs/vit_l")    # a run, or an official, Hugging Face or timm model
model = mae_jax.load("clothing-96")   # small weights that come with mae_jax
images = model.load_images("photos")  # a folder, a glob pattern or a list of files
features = model.features(images)     # [N, D]
views = model.reconstruct(images)     # original, masked, predicted, pasted
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from mae_jax.tasks.detection_eval import ImageDetections

POOLS = ("mean", "cls", "patches")
_MAX_DEVIATION = 100.0  # in units of std; no correctly scaled pixel is that far from the mean


def load(path: str, *, dtype: str = "auto", ema: bool = False) -> "Pretrained":
    """Loads a trained model.

    Args:
      path: a run (its newest step), RUN:best, one of its steps, weights in any format that
        `mae_jax.tools.convert` reads (docs/weights.md), or the name of weights that come with
        mae_jax, such as "clothing-96".
      dtype: of the arithmetic; "auto" is bfloat16 on accelerators and float32 on CPU.
      ema: load the averaged weights, if the run kept them.

    Raises:
      UsageError: there is no model at `path`, or it is corrupt or incomplete.
    """
    path = filesystem.expand(path)
    model = convert.load(path, ema=ema)
    model.report.check()
    return Pretrained(model, path, dtype=dtype)


def describe(model: convert.Weights) -> str:
    """Summary of a model on one line: size, images, and decoder with target, or head."""
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
    if model.kind == "mask_rcnn":
        return f"{text}; Mask R-CNN of {classes} classes"
    return f"{text}; {f'{classes} classes, ' * bool(classes)}pool {fields['pool']}"


class Pretrained:
    """A trained model; computes features and reconstructions of images.

    Images are [N, H, W, C] of the model's size: uint8, or float in the units of `pixels`, which
    are [0, 1] for ordinary photos. `load_images` reads them from files.

    Attributes:
      metadata: architecture, target, data and configuration (see docs/checkpoints.md).
      params: all parameters by name.
      image_size: (H, W).
      channels: C.
      grid: patches (rows, columns).
      pixels: `mean` and `std` of the pixels, per channel.
      class_names: of a classifier, in the order of its head; numbers where the weights do not name
        them; [] for other models.
    """

    def __init__(self, model: convert.Weights, path: str, *, dtype: str = "auto"):
        self._model, self._path, self._dtype = model, path, dtype
        self.metadata, self.params = model.metadata, model.params
        self.image_size: tuple[int, int] = model.fields["image_size"]
        self.channels: int = model.fields["channels"]
        self.grid = grid_size(self.image_size, model.fields["patch_size"])
        self.pixels = {key: tuple(self.metadata["data"][key]) for key in ("mean", "std")}
        names = self.metadata.get("classes")
        self.class_names = list(names or map(str, range(model.fields.get("num_classes", 0))))
        self._compiled: dict[Any, Any] = {}

    def __repr__(self) -> str:
        step = self.metadata.get("step")
        where = f"{self._path}, step {step:,}" if step else self._path
        return f"<Pretrained {where}: {describe(self._model)}>"

    def load_images(self, files: str | Path | Sequence[str | Path]) -> np.ndarray:
        """Reads images into memory with the model's evaluation transform.

        Args:
          files: paths of images; or one path: a folder (searched recursively), a glob pattern, a
            list file (.txt, .csv) or an image.

        Returns:
          [N, H, W, C] in the order of the list or of the sorted paths; uint8, or float32 if the
          model was trained with `data.dtype` float32.

        Raises:
          UsageError: there are no images, or one (named) is missing or cannot be read.
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
        """Features of unmasked images.

        Args:
          images: [N, H, W, C]; see the class.
          pool: "mean" of the patch tokens, the class token "cls", or all "patches" in image order.
          layer: index of the block to take the output of; negative indices count from the end. Only
            the last block is followed by the final norm.
          batch_size: images per forward pass.

        Returns:
          float32 [N, D], or [N, L, D] for "patches".

        Raises:
          UsageError: images of the wrong shape or units, or no such pool or layer.
        """
        images = self._check_images(images)
        require(batch_size > 0, f"batch_size={batch_size} must be positive")
        key = ("features", pool, layer)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(self.feature_function(pool=pool, layer=layer))
        variables = self.encoder_variables
        starts = range(0, len(images), batch_size)
        parts = [self._compiled[key](variables, images[i : i + batch_size]) for i in starts]
        return np.concatenate([np.asarray(part) for part in parts])

    def feature_function(self, *, pool: str, layer: int) -> Callable[[Any, jax.Array], jax.Array]:
        """`features` as a pure function of (`encoder_variables`, images), for `jax.jit`.

        Raises:
          UsageError: no such pool or layer.
        """
        encoder = self._encoder
        depth = encoder.depth
        require(pool in POOLS, f"--pool={pool} is not one of {', '.join(POOLS)}")
        require(
            -depth <= layer < depth,
            f"layer {layer} does not exist: the model has {depth} blocks (0 to {depth - 1}, or "
            f"-{depth} to -1)",
        )
        last = layer % depth == depth - 1

        def function(variables: Any, images: jax.Array) -> jax.Array:
            patches = to_float(patchify(images, encoder.patch_size), **self.pixels)
            apply = functools.partial(encoder.apply, variables, patches)
            if last and encoder.pool == "mean" and pool == "mean":
                return apply(method=encoder.features)  # as its head was trained on
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
        require(
            self._model.kind != "mask_rcnn",
            f"{self._path} is a detector, which has no feature vector of a whole image: use the "
            "weights it was fine-tuned from",
        )
        return factory.build_vit(surgery.encoder_only(self._model).fields, dtype=self._dtype)

    # Classes.

    def probabilities(self, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Probability of each of `class_names`: float32 [N, C], rows sum to 1.

        Args:
          images: see the class.
          batch_size: images at once.

        Raises:
          UsageError: the model is no classifier, or images of another shape.
        """
        images = self._check_images(images)
        require(batch_size > 0, f"batch_size={batch_size} must be positive")
        if "probabilities" not in self._compiled:
            self._compiled["probabilities"] = jax.jit(self.probability_function())
        starts = range(0, len(images), batch_size)
        function = self._compiled["probabilities"]
        parts = [function(self.variables, images[i : i + batch_size]) for i in starts]
        return np.concatenate([np.asarray(part) for part in parts])

    def probability_function(self) -> Callable[[Any, jax.Array], jax.Array]:
        """`probabilities` as a function of (`variables`, images), to be compiled.

        Raises:
          UsageError: the model is no classifier.
        """
        require(
            bool(self.class_names),
            f"{self._path} is not a classifier: fine-tune or probe it first (configs/finetune, "
            "configs/linprobe)",
        )
        classifier = factory.build_vit(self._model.fields, dtype=self._dtype)

        def function(variables: Any, images: jax.Array) -> jax.Array:
            patches = to_float(patchify(images, classifier.patch_size), **self.pixels)
            logits: Any = classifier.apply(variables, patches)
            return jax.nn.softmax(logits.astype(jnp.float32))

        return function

    @functools.cached_property
    def variables(self) -> Any:
        """First argument of `probability_function`."""
        return jax.device_put(self._model.variables())

    # Objects.

    def detect(
        self, files: str | Path | Sequence[str | Path], *, batch_size: int = 8
    ) -> list["ImageDetections"]:
        """Objects in image files of any size, by a detector (docs/detection.md).

        Args:
          files: see `load_images`.
          batch_size: images at once.

        Returns:
          For each readable image, in the order of `load_images`: its index, boxes (x0, y0, x1, y1)
          in its own pixels, scores, class numbers, and masks as COCO RLE.

        Raises:
          UsageError: the model is no detector, or there are no images.
        """
        from mae_jax.tasks.detection_eval import detect  # only detectors need pycocotools

        require(
            self._model.kind == "mask_rcnn",
            f"{self._path} is not a detector: train one first (configs/detection)",
        )
        if isinstance(files, (str, Path)):
            source = data.image_source(str(files))
        else:
            source = data.listed_files([str(file) for file in files])
        return detect(self._model, source, batch_size=batch_size)

    # Reconstructions.

    @property
    def has_decoder(self) -> bool:
        """Whether `reconstruct` works."""
        return self._model.kind == "mae"

    @property
    def predicts_visible(self) -> bool:
        """Whether it was trained to predict visible patches too (`target.loss_on` is "all")."""
        config = self.metadata.get("config", {})
        return config.get("target", {}).get("loss_on") == "all"

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
        """Masks images and reconstructs them; the results are NumPy arrays.

        `pasted` is what a figure should show: the prediction in masked patches, the original
        elsewhere. A model of normalized pixels is shown with the true mean and standard deviation
        of every patch, which it does not predict (`target.caption` says so). For other targets,
        compare `predicted` with `target`.

        Args:
          images: [N, H, W, C]; see the class.
          mask_ratio: fraction of the patches to mask; None for the ratio of the training.
          mask: the patches to mask, instead of random ones: 1 is masked, 0 is visible. [L],
            [rows, columns], or either per image with the same number of masked patches in each.
          priority: numbers in the shapes of `mask`: masks the patches with the highest ones, ties
            at random, until `mask_ratio` is reached. `patches.patch_means` computes it from pixels.
          mask_kind: see `masking.find`; None for the kind of the training.
          seed: of the masks.

        Raises:
          UsageError: the model has no decoder, images or mask have the wrong shape, the mask ratio
            is impossible, or the options of the mask exclude each other.
        """
        model = self._autoencoder
        images = self._check_images(images)
        if mask is not None:
            require(
                all(x is None for x in (mask_ratio, mask_kind, priority)),
                "a mask already determines the masked patches: leave out ratio, kind and priority",
            )
            hidden = self._mask_from_array(np.asarray(mask), len(images))
        else:
            require(
                priority is None or mask_kind is None,
                "a priority already determines the masked patches: leave out the kind of mask",
            )
            hidden = self._sample_mask(len(images), mask_ratio, mask_kind, priority, seed)
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
        """The target that the model was trained to predict."""
        spec = factory.patch_spec(self._model.fields, self.metadata["data"])
        return targets.restore(self.metadata["target"], spec, self._model.target)

    @functools.cached_property
    def _autoencoder(self) -> Any:
        require(
            self._model.kind == "mae",
            f"no decoder weights in {self._path} (encoder-only export): use the run it was "
            "exported from, or a file that has them (official: mae_visualize_*, *_full)",
        )
        return factory.build_mae(self._model.fields, dtype=self._dtype)

    @functools.cached_property
    def _decoder_params(self) -> Any:
        return jax.device_put(self._model.variables()["params"])

    def _sample_mask(
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
                values = self._per_patch(np.asarray(priority, np.float32), number, "priority")
                require(bool(np.isfinite(values).all()), "a priority must be finite")
                hidden = masking.from_priority(jnp.asarray(values), ratio, key)
        except ValueError as error:
            raise UsageError(f"{error} (--mask_ratio={ratio})") from error
        require(
            hidden.len_keep < hidden.ids_shuffle.shape[1], f"--mask_ratio={ratio} hides no patch"
        )
        return hidden

    def _per_patch(self, values: np.ndarray, number: int, name: str) -> np.ndarray:
        """Checks `values` and broadcasts them to the patches of all images, [number, L]."""
        patches = self.grid[0] * self.grid[1]
        if values.shape in ((patches,), self.grid):
            values = np.broadcast_to(values.reshape(1, patches), (number, patches))
        require(
            values.shape in ((number, patches), (number, *self.grid)),
            f"the {name} is {values.shape}; {number} images have {self.grid} patches each",
        )
        return values.reshape(number, patches)

    def _mask_from_array(self, mask: np.ndarray, number: int) -> masking.Masking:
        mask = self._per_patch(mask, number, "mask")
        require(bool(np.isin(mask, (0, 1)).all()), "a mask must contain only 1 (masked) and 0")
        mask = mask.astype(np.int32)
        hidden, patches = mask.sum(axis=1), mask.shape[1]
        require(
            int(hidden.min()) == int(hidden.max()) and 0 < hidden[0] < patches,
            f"a mask must hide some of the {patches} patches and show some, the same number in "
            f"every image; this one hides {sorted(set(hidden.tolist()))}",
        )
        return masking.from_mask(jnp.asarray(mask), patches - int(hidden[0]))

    def _check_images(self, images: Any) -> np.ndarray:
        images, shape = np.asarray(images), (*self.image_size, self.channels)
        require(
            images.ndim == 4 and images.shape[1:] == shape and len(images) > 0,
            f"images of shape {images.shape}: the model takes [N, {', '.join(map(str, shape))}] "
            "(load_images reads them from files)",
        )
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        require(
            images.dtype == np.uint8 or floats,
            f"images of {images.dtype}: use uint8, or float in the units of {self.pixels}",
        )
        if floats:  # values from 0 to 255 are about a thousand deviations away
            away = np.abs(images - np.array(self.pixels["mean"])) / np.array(self.pixels["std"])
            require(
                bool(away.max() < _MAX_DEVIATION),
                f"images up to {images.max():.4g}, but the model was trained on pixels of "
                f"{self.pixels}: divide by 255, or pass uint8",
            )
        return images
