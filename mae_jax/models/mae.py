"""The masked autoencoder (paper section 3), without work that does not affect its result.

Only visible patches are embedded. The decoder keeps the shuffled order, because attention with
position embeddings is independent of token order. Its last block, norm and prediction are computed
for masked patches only. `mae_jax.tools.bench.baselines.plain_mae` follows the paper's order and
computes the same result.

`encoder_mask_tokens` is the ablation of table 1c, whose encoder also processes mask tokens.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import layers
from mae_jax.models.pos_embed import sincos_2d
from mae_jax.models.vit import block_macs
from mae_jax.ops.masking import Masking, from_noise
from mae_jax.ops.patches import gather, grid_size


class MaskedAutoencoder(nn.Module):
    """Encoder on the visible patches, lightweight decoder on all patches (paper A.1, table 1).

    Parameters are named as in the official code; the sine-cosine position tables are constants, not
    parameters. Patch vectors are float, ordered as in `ops.patches`, with P = ph*pw*C entries.

    Attributes:
      image_size: (H, W).
      patch_size: (ph, pw).
      channels: C.
      embed_dim, depth, num_heads: of the encoder.
      mlp_ratio: hidden width of the MLPs over the width of their block, in both parts.
      decoder_embed_dim, decoder_num_heads: of the decoder.
      decoder_depth: blocks of the decoder; 0 is a linear head and needs `encoder_mask_tokens`.
      pred_dim: values that the decoder predicts for each patch; 0 means P, its pixels.
      encoder_mask_tokens: the encoder processes all patches, with a learned token in place of each
        masked one, and the decoder adds none (table 1c). The paper does not give details; here
        these tokens get position embeddings like all others.
      dtype: of the arithmetic; parameters are float32.
      attention: a key of `layers.ATTENTION`.
      remat: a key of `layers.REMAT`.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    pred_dim: int = 0
    encoder_mask_tokens: bool = False
    dtype: layers.Dtype = jnp.float32
    attention: str = "xla"
    remat: str = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return grid_size(self.image_size, self.patch_size)

    @property
    def patch_dim(self) -> int:
        """Length of a patch vector, P."""
        return self.patch_size[0] * self.patch_size[1] * self.channels

    def setup(self):
        token_init = nn.initializers.normal(0.02)
        self.patch_embed = layers.PatchEmbed(self.embed_dim, self.patch_size, self.dtype)
        self.cls_token = self.param("cls_token", token_init, (1, 1, self.embed_dim))
        block = layers.block_class(self.remat)
        self.blocks = [
            block(self.num_heads, self.mlp_ratio, self.dtype, self.attention)
            for _ in range(self.depth)
        ]
        self.norm = layers.layer_norm(self.dtype)
        self.decoder_embed = layers.dense(self.decoder_embed_dim, self.dtype)
        if self.encoder_mask_tokens:
            shape = (1, 1, self.embed_dim)
            self.encoder_mask_token = self.param("encoder_mask_token", token_init, shape)
        else:
            self.mask_token = self.param("mask_token", token_init, (1, 1, self.decoder_embed_dim))
        self.decoder_blocks = [
            block(self.decoder_num_heads, self.mlp_ratio, self.dtype, self.attention)
            for _ in range(self.decoder_depth)
        ]
        self.decoder_norm = layers.layer_norm(self.dtype)
        self.decoder_pred = layers.dense(self.pred_dim or self.patch_dim, self.dtype)

    def __call__(
        self, visible: jax.Array, masking: Masking, predict_all: bool = False
    ) -> jax.Array:
        """Predictions for the masked patches, or for every patch, in shuffled order.

        Args:
          visible: patch vectors [B, K, P] of `masking.ids_keep`, in that order.
          masking: which patches of the grid are visible.
          predict_all: predict visible patches too.

        Returns:
          [B, L - K, pred_dim] in the order of `masking.ids_masked`, or [B, L, pred_dim] in the
          order of `masking.ids_shuffle`.
        """
        hidden = masking.ids_masked if self.encoder_mask_tokens else None
        return self.decode(self.encode(visible, masking.ids_keep, hidden), masking, predict_all)

    def encode(
        self, patches: jax.Array, ids: jax.Array, hidden: jax.Array | None = None
    ) -> jax.Array:
        """Encodes patches; the class token comes first.

        Args:
          patches: patch vectors [B, K, P].
          ids: their grid indices [B, K].
          hidden: grid indices [B, M] of mask tokens (with `encoder_mask_tokens`); None adds none.

        Returns:
          [B, 1 + K, D], or [B, 1 + K + M, D].
        """
        x = self.patch_embed(patches) + self.positions(self.embed_dim, ids)
        if hidden is not None:
            tokens = self.encoder_mask_token.astype(x.dtype) + self.positions(
                self.embed_dim, hidden
            )
            x = jnp.concatenate([x, tokens], axis=1)
        cls = jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([cls, x], axis=1)  # the class token's position embedding is zero
        for block in self.blocks:
            x = block(x, None)
        return self.norm(x)

    def decode(self, latent: jax.Array, masking: Masking, predict_all: bool = False) -> jax.Array:
        """Predictions for the masked patches, or for every patch, in shuffled order.

        Args:
          latent: output of `encode`: [B, 1 + K, D], or [B, 1 + L, D] with `encoder_mask_tokens`.
          masking: the masking that `latent` was computed with.
          predict_all: predict visible patches too, as figures and `loss_on=all` need.

        Returns:
          [B, L - K, pred_dim], or [B, L, pred_dim] with the K visible patches first.
        """
        x = self.decoder_embed(latent)
        positions = self.positions(self.decoder_embed_dim, masking.ids_shuffle)
        visible, hidden = positions[:, : masking.len_keep], positions[:, masking.len_keep :]
        if self.encoder_mask_tokens:
            x = jnp.concatenate([x[:, :1], x[:, 1:] + positions], axis=1)
        else:
            x = jnp.concatenate(
                [x[:, :1], x[:, 1:] + visible, self.mask_token.astype(x.dtype) + hidden], axis=1
            )
        num_predicted = (positions if predict_all else hidden).shape[1]
        for block in self.decoder_blocks[:-1]:
            x = block(x, None)
        for block in self.decoder_blocks[-1:]:
            x = block(x, num_predicted)
        return self.decoder_pred(self.decoder_norm(x[:, -num_predicted:]))

    def predict(self, visible: jax.Array, masking: Masking) -> jax.Array:
        """Predictions [B, L, pred_dim] for every patch, in image order."""
        return gather(self(visible, masking, predict_all=True), masking.ids_restore)

    def positions(self, dim: int, ids: jax.Array) -> jax.Array:
        """Rows of the position table [B, K, dim] for grid indices `ids` [B, K]."""
        table = jnp.asarray(sincos_2d(dim, self.grid)[1:], self.dtype)
        return table[ids]


def init_params(model: MaskedAutoencoder, key: jax.Array) -> Any:
    """Initial parameters."""
    num_patches = model.grid[0] * model.grid[1]
    hidden = from_noise(jnp.zeros((1, num_patches)), 0.5)  # the parameters do not depend on it
    visible = jnp.zeros((1, hidden.len_keep, model.patch_dim))
    return model.init(key, visible, hidden)["params"]


def train_flops(model: MaskedAutoencoder, num_visible: int) -> float:
    """FLOPs of one training step per image, counting the backward pass as two forward passes.

    Counts the matrix products of the official algorithm, which embeds and predicts all patches, so
    that utilization is comparable between implementations.
    """
    num_patches = model.grid[0] * model.grid[1]
    width = model.decoder_embed_dim
    encoded = 1 + (num_patches if model.encoder_mask_tokens else num_visible)
    macs = (
        num_patches * model.patch_dim * model.embed_dim
        + model.depth * block_macs(encoded, model.embed_dim, model.mlp_ratio)
        + encoded * model.embed_dim * width
        + model.decoder_depth * block_macs(num_patches + 1, width, model.mlp_ratio)
        + (num_patches + 1) * width * (model.pred_dim or model.patch_dim)
    )
    return 3 * 2 * macs
