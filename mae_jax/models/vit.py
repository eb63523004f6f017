"""The Vision Transformer as a classifier, and the sizes of its encoder."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import layers
from mae_jax.ops.patches import grid_size


class Size(NamedTuple):
    """Encoder width, blocks and heads."""

    embed_dim: int
    depth: int
    num_heads: int


# B, L, H: Dosovitskiy et al. (2010.11929) table 1. Ti, S: Touvron et al. (2012.12877) table 1.
# 2B: Singh et al. (2303.13496).
SIZES = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
    "2B": Size(2560, 24, 32),
}
BN_EPS, BN_MOMENTUM = 1e-6, 0.1


class BatchNorm(nn.Module):
    """BatchNorm over examples without scale and bias (torch's `BatchNorm1d(affine=False)`).

    Running statistics are in the collection `batch_stats`. In training, every `group` consecutive
    rows are normalized by their own statistics, like the per-device batches of the official code
    (512 rows each); the running statistics track the average over groups. group=0 is the whole
    batch.
    """

    group: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x float32 [B, D] -> [B, D]."""
        dim = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,))
        var = self.variable("batch_stats", "var", jnp.ones, (dim,))
        if not train:
            return (x - mean.value) * jax.lax.rsqrt(var.value + BN_EPS)
        rows = x.reshape(-1, self.group or x.shape[0], dim)
        now_mean, now_var = rows.mean(1, keepdims=True), rows.var(1, keepdims=True)
        unbiased = now_var * rows.shape[1] / max(rows.shape[1] - 1, 1)  # as torch keeps it
        mean.value += BN_MOMENTUM * (now_mean.mean((0, 1)) - mean.value)
        var.value += BN_MOMENTUM * (unbiased.mean((0, 1)) - var.value)
        return ((rows - now_mean) * jax.lax.rsqrt(now_var + BN_EPS)).reshape(x.shape)


class VisionTransformer(nn.Module):
    """The autoencoder's encoder on all patches, and a linear head (official `models_vit.py`).

    Parameters are named as in the official code; the position table is a parameter.

    Attributes:
      image_size: (H, W).
      patch_size: (ph, pw).
      channels: C.
      embed_dim, depth, num_heads, mlp_ratio: of the blocks.
      num_classes: outputs of the head; 0 for no head, as in timm.
      pool: "cls", the class token after the final norm; or "mean", the mean of the patch tokens
        before any norm, followed by `fc_norm` (the official `global_pool`).
      drop_path: stochastic depth rate of the last block; increases linearly from 0 in the first.
      head_std: standard deviation of the head's initial weights.
      head_norm: BatchNorm without scale and bias before the head (linear probing).
      head_norm_group: rows that share statistics; see `BatchNorm`.
      dtype: of the arithmetic; parameters and logits are float32.
      attention: a key of `layers.ATTENTION`.
      remat: a key of `layers.REMAT`.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    embed_dim: int
    depth: int
    num_heads: int
    num_classes: int
    mlp_ratio: float = 4.0
    pool: str = "cls"
    drop_path: float = 0.0
    head_std: float = 0.02
    head_norm: bool = False
    head_norm_group: int = 0
    dtype: layers.Dtype = jnp.float32
    attention: str = "xla"
    remat: str = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return grid_size(self.image_size, self.patch_size)

    @property
    def drop_rates(self) -> list[float]:
        """Stochastic depth rate of each block."""
        return [self.drop_path * i / max(self.depth - 1, 1) for i in range(self.depth)]

    def setup(self):
        shape = (1, 1 + self.grid[0] * self.grid[1], self.embed_dim)
        # Without pre-trained weights the official classifier is timm's: normal, not Xavier.
        self.patch_embed = layers.PatchEmbed(self.embed_dim, self.patch_size, self.dtype, False)
        self.cls_token = self.param("cls_token", layers.NORMAL, (1, 1, self.embed_dim))
        self.pos_embed = self.param("pos_embed", layers.NORMAL, shape)
        block = layers.block_class(self.remat)
        self.blocks = [
            block(
                self.num_heads,
                self.mlp_ratio,
                self.dtype,
                self.attention,
                kernel_init=layers.NORMAL,
                drop_path=rate,
            )
            for rate in self.drop_rates
        ]
        if self.pool == "cls":
            self.norm = layers.layer_norm(self.dtype)
        else:
            self.fc_norm = layers.layer_norm(self.dtype)
        if self.head_norm:
            self.batch_norm = BatchNorm(self.head_norm_group)
        if self.num_classes:
            head_init = nn.initializers.normal(self.head_std)
            self.head = layers.dense(self.num_classes, jnp.float32, kernel_init=head_init)

    def __call__(
        self, patches: jax.Array, noise: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Logits float32 [B, num_classes], or features [B, D] without a head.

        Args:
          patches: normalized patch vectors [B, L, P] of whole images.
          noise: uniform [B, depth, 2] for stochastic depth; None drops nothing.
          train: normalize by the statistics of the batch (`head_norm`).
        """
        x = self.features(patches, noise)
        if self.head_norm:
            x = self.batch_norm(x, train)
        return self.head(x) if self.num_classes else x

    def features(self, patches: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Input of the head, before BatchNorm: float32 [B, D]."""
        if self.pool == "cls":
            return self.norm(self._blocks(patches, noise, cls_only=True))[:, 0].astype(jnp.float32)
        tokens = self._blocks(patches, noise)
        return self.fc_norm(tokens[:, 1:].mean(axis=1)).astype(jnp.float32)

    def encode(self, patches: jax.Array, num_blocks: int | None = None) -> jax.Array:
        """All tokens [B, 1 + L, D], class token first.

        Args:
          patches: as in `__call__`.
          num_blocks: return the tokens after this many blocks, before any norm. None applies all
            blocks and the final norm (with pool "mean", tokens have no final norm).
        """
        x = self._embed(patches)
        for block in self.blocks[:num_blocks]:
            x = block(x, None)
        return self.norm(x) if num_blocks is None and self.pool == "cls" else x

    def _embed(self, patches: jax.Array) -> jax.Array:
        """Tokens [B, 1 + L, D] before the first block."""
        positions = self.pos_embed.astype(self.dtype)
        x = self.patch_embed(patches) + positions[:, 1:]
        cls = self.cls_token.astype(self.dtype) + positions[:, :1]
        return jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, x.shape[2])), x], axis=1)

    def _blocks(
        self, patches: jax.Array, noise: jax.Array | None = None, cls_only: bool = False
    ) -> jax.Array:
        """Tokens [B, 1 + L, D] after the last block, or only the class token [B, 1, D]."""
        x = self._embed(patches)
        drops = [None] * self.depth if noise is None else [noise[:, i] for i in range(self.depth)]
        for block, drop in zip(self.blocks[:-1], drops[:-1], strict=True):
            x = block(x, None, drop)
        if not cls_only:
            return self.blocks[-1](x, None, drops[-1])
        # A block computes its last tokens only, so the class token goes last; order is irrelevant.
        return self.blocks[-1](jnp.roll(x, -1, axis=1), 1, drops[-1])


def init_variables(model: VisionTransformer, key: jax.Array) -> tuple[Any, Any]:
    """Initial (parameters, other variables)."""
    patch_dim = model.patch_size[0] * model.patch_size[1] * model.channels
    variables = model.init(key, jnp.zeros((1, model.grid[0] * model.grid[1], patch_dim)))
    return variables.pop("params"), dict(variables)


def block_macs(tokens: int, dim: int, mlp_ratio: float) -> float:
    """Multiply-adds of one block's matrix products for one example."""
    return (4 + 2 * mlp_ratio) * tokens * dim**2 + 2 * tokens**2 * dim


def forward_macs(model: VisionTransformer) -> float:
    """Multiply-adds of the encoder for one image, as the official code computes it."""
    patches = model.grid[0] * model.grid[1]
    patch_dim = model.patch_size[0] * model.patch_size[1] * model.channels
    blocks = model.depth * block_macs(patches + 1, model.embed_dim, model.mlp_ratio)
    return patches * patch_dim * model.embed_dim + blocks
