"""Discrete tokens of a frozen tokenizer, as in BEiT (paper table 1d and table 7)."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mae_jax.models.dvae import SIZES, DiscreteVAE, check_sizes, part_shapes
from mae_jax.models.targets.base import PatchSpec, Target
from mae_jax.ops.patches import grid_size, patchify, to_float
from mae_jax.ops.trees import flatten, unflatten
from mae_jax.runtime.errors import UsageError, require


class TokenTarget(Target):
    """The code that a frozen tokenizer assigns to each patch.

    The tokenizer sees the same augmented image as the autoencoder, in [0, 1] and resized (Lanczos)
    so that there is one code per patch: 224 -> 112 for patches of 16 and codes of 8 pixels. BEiT
    instead crops the same region from the original photo again, which is slightly sharper.

    Args:
      spec: how images are patchified and normalized.
      tokenizer: `DiscreteVAE` sizes, `parts` and `sha256` of the tokenizer.
      arrays: its parameters by name; never trained.
      dtype: of its arithmetic; logits are float32.

    Raises:
      UsageError: the tokenizer does not work with these patches or channels.
      ValueError: the sizes are invalid, or the arrays do not match them.
    """

    def __init__(
        self,
        spec: PatchSpec,
        tokenizer: dict[str, Any],
        arrays: dict[str, Any],
        *,
        dtype: Any = jnp.float32,
    ):
        self.spec, self.arrays, self._metadata = spec, arrays, tokenizer
        self.width = tokenizer["vocab_size"]
        sizes: dict[str, Any] = check_sizes({key: tokenizer[key] for key in SIZES})
        self._grid = grid_size(spec.image_size, spec.patch_size)
        factor = 2 ** (sizes["groups"] - 1)
        size = self._grid[0] * factor, self._grid[1] * factor
        self._model = DiscreteVAE(size, **sizes, dtype=dtype)
        self.has_decoder = "decoder" in tokenizer["parts"]
        expected = part_shapes(self._model, tuple(tokenizer["parts"]))
        if {k: x.shape for k, x in expected.items()} != {k: x.shape for k, x in arrays.items()}:
            raise ValueError(f"the arrays do not match a tokenizer of {sizes}")
        self.caption = "Token target: the most likely tokens, drawn by the tokenizer's decoder"
        _check(spec, self._model)

    @classmethod
    def from_config(
        cls, spec: PatchSpec, config: Any, *, dtype: Any, load_tokenizer: Callable[[], Any]
    ) -> Self:
        require(
            config.data.dtype == "uint8",
            f"--config.data.dtype={config.data.dtype}: a tokenizer takes pixels in [0, 1], uint8",
        )
        tokenizer = load_tokenizer()
        target = cls(spec, tokenizer.metadata(), tokenizer.arrays, dtype=dtype)
        require(
            target.has_decoder or config.figure_every == 0,
            f"--config.figure_every={config.figure_every}: the tokenizer has no decoder to draw "
            "its tokens with: set --config.figure_every=0, or put decoder.pkl beside encoder.pkl "
            "and pass their folder",
        )
        return target

    @classmethod
    def from_metadata(
        cls, spec: PatchSpec, metadata: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> Self:
        return cls(spec, metadata["tokenizer"], arrays)

    @classmethod
    def describe(cls, metadata: Mapping[str, Any]) -> str:
        return f"{metadata['tokenizer']['vocab_size']} tokens"

    def metadata(self) -> dict[str, Any]:
        return {"tokenizer": self._metadata}

    def targets(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Tokens int32 [B, M], without gradient."""
        variables = {"params": jax.lax.stop_gradient(unflatten(flatten(arrays)))}
        tokens: Any = self._model.apply(variables, self._resized(images), method="codes")
        return jnp.take_along_axis(tokens.reshape(tokens.shape[0], -1), ids, axis=1)

    def loss(self, pred: jax.Array, targets: jax.Array) -> jax.Array:
        """Cross-entropy, float32 [B]."""
        logits = pred.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(axis=1)

    def baseline_loss(self, targets: jax.Array, valid: jax.Array) -> jax.Array:
        """Predicts the frequencies of the tokens in the batch.

        The mean over the batch is the entropy of these frequencies. Unless the batch has many more
        tokens than the vocabulary, that underestimates the loss of such a prediction.
        """
        counts = jnp.zeros(self.width, jnp.float32).at[targets].add(valid[:, None])
        shares = counts[targets] / jnp.maximum(counts.sum(), 1.0)
        return jnp.where(valid[:, None] > 0, -jnp.log(shares), 0.0).mean(axis=1)

    def to_pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        return self._decode(arrays, pred.argmax(axis=-1))

    def true_pixels(self, arrays: Any, images: jax.Array) -> jax.Array:
        ids = self.spec.all_ids(images.shape[0])
        return self._decode(arrays, self.targets(arrays, images, ids))

    def _decode(self, arrays: Any, tokens: jax.Array) -> jax.Array:
        """Normalized patches [B, L, P] that the tokenizer's decoder draws from tokens [B, L]."""
        if not self.has_decoder:
            raise UsageError("this tokenizer has no decoder: its tokens cannot be drawn")
        variables = {"params": unflatten(flatten(arrays))}
        codes = tokens.reshape(-1, *self._grid)
        drawn: Any = self._model.apply(variables, codes, method="decode_codes")
        shape = (*drawn.shape[:1], *self.spec.image_size, self.spec.channels)
        drawn = jax.image.resize(drawn, shape, "linear")
        return to_float(patchify(drawn, self.spec.patch_size), self.spec.mean, self.spec.std)

    def _resized(self, images: jax.Array) -> jax.Array:
        """Images float32 in [0, 1], resized so that the tokenizer has one code per patch."""
        floats = images.astype(jnp.float32)
        if images.dtype == jnp.uint8:
            floats = floats / 255
        if images.shape[1:3] == self._model.image_size:
            return floats
        shape = (images.shape[0], *self._model.image_size, images.shape[3])
        return jnp.clip(jax.image.resize(floats, shape, "lanczos3"), 0, 1)


def _check(spec: PatchSpec, model: DiscreteVAE) -> None:
    factor, (height, width) = model.factor, spec.patch_size
    if model.channels != spec.channels:
        raise UsageError(
            f"the tokenizer is for images of {model.channels} channels, not "
            f"--config.model.channels={spec.channels}"
        )
    if height != width or height < factor:
        raise UsageError(
            f"one code of the tokenizer stands for {factor} x {factor} pixels, which patches of "
            f"{height} x {width} (--config.model.patch_size) cannot be shrunk to: use square "
            f"patches of {factor} pixels or more, or another tokenizer (--config.tokenizer.groups)"
        )
