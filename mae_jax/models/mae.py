"""The masked autoencoder (paper section 3), without the work that cannot change its result.

Only visible patches are embedded; the decoder keeps the shuffled order, since attention with the
position added does not care about order; and its last block, norm and prediction are computed for
masked patches alone. `mae_jax.bench.plain_mae` is the order of the paper, and equal to this.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import layers
from mae_jax.models.posemb import sincos_2d
from mae_jax.models.vit import block_macs
from mae_jax.ops.masking import Masking, from_noise
from mae_jax.ops.patches import gather, grid_size


class MaskedAutoencoder(nn.Module):
    """Encoder on the visible patches, light decoder on all (paper A.1, table 1).

    Parameters are named as in the official code; the sine-cosine position tables are constants, not
    parameters. Patch vectors are float, ordered as in `ops.patches`, with P = ph*pw*C entries.
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
    dtype: layers.Dtype = jnp.float32
    attention: str = "xla"
    remat: str = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return grid_size(self.image_size, self.patch_size)

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
        self.mask_token = self.param("mask_token", token_init, (1, 1, self.decoder_embed_dim))
        self.decoder_blocks = [
            block(self.decoder_num_heads, self.mlp_ratio, self.dtype, self.attention)
            for _ in range(self.decoder_depth)
        ]
        self.decoder_norm = layers.layer_norm(self.dtype)
        patch_dim = self.patch_size[0] * self.patch_size[1] * self.channels
        self.decoder_pred = layers.dense(patch_dim, self.dtype)

    def __call__(self, visible: jax.Array, masking: Masking) -> jax.Array:
        """Predictions for the masked patches.

        Args:
          visible: patch vectors [B, K, P] of `masking.ids_keep`, in that order.
          masking: which patches of the grid are visible.

        Returns:
          [B, L - K, P] in the order of `masking.ids_masked`.
        """
        return self.decode(self.encode(visible, masking.ids_keep), masking)

    def encode(self, patches: jax.Array, ids: jax.Array) -> jax.Array:
        """Latent [B, 1 + K, D] (class token first) of `patches` [B, K, P] at grid indices `ids`."""
        x = self.patch_embed(patches) + self.positions(self.embed_dim, ids)
        cls = jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([cls, x], axis=1)  # its position is zero: nothing to add
        for block in self.blocks:
            x = block(x, None)
        return self.norm(x)

    def decode(self, latent: jax.Array, masking: Masking, every: bool = False) -> jax.Array:
        """Predictions for the masked patches, or for every patch, in shuffled order.

        Args:
          latent: [B, 1 + K, D] from `encode`.
          masking: the masking `latent` was made with.
          every: predict visible patches too (pictures need that, training does not).

        Returns:
          [B, L - K, P], or [B, L, P] with `every`, where the first K are the visible ones.
        """
        x = self.decoder_embed(latent)
        positions = self.positions(self.decoder_embed_dim, masking.ids_shuffle)
        seen, hidden = positions[:, : masking.len_keep], positions[:, masking.len_keep :]
        x = jnp.concatenate(
            [x[:, :1], x[:, 1:] + seen, self.mask_token.astype(x.dtype) + hidden], axis=1
        )
        for block in self.decoder_blocks[:-1]:
            x = block(x, None)
        x = self.decoder_blocks[-1](x, (positions if every else hidden).shape[1])
        return self.decoder_pred(self.decoder_norm(x))

    def predict(self, visible: jax.Array, masking: Masking) -> jax.Array:
        """Predictions [B, L, P] for every patch, in image order."""
        pred = self.decode(self.encode(visible, masking.ids_keep), masking, every=True)
        return gather(pred, masking.ids_restore)

    def positions(self, dim: int, ids: jax.Array) -> jax.Array:
        """Rows of the position table [B, K, dim] for grid indices `ids` [B, K]."""
        table = jnp.asarray(sincos_2d(dim, self.grid)[1:], self.dtype)
        return table[ids]


def init_params(model: MaskedAutoencoder, key: jax.Array) -> Any:
    """Fresh parameters."""
    patch_dim = model.patch_size[0] * model.patch_size[1] * model.channels
    num_patches = model.grid[0] * model.grid[1]
    hidden = from_noise(jnp.zeros((1, num_patches)), 0.5)  # the parameters do not depend on it
    visible = jnp.zeros((1, hidden.len_keep, patch_dim))
    return model.init(key, visible, hidden)["params"]


def train_flops(model: MaskedAutoencoder, num_visible: int) -> float:
    """FLOPs of one training step for one image by the official algorithm (three forward passes).

    Counts the matrix products of the paper's formulation, where all patches are embedded and
    predicted, so that utilisation is comparable between implementations.
    """

    num_patches = model.grid[0] * model.grid[1]
    patch_dim = model.patch_size[0] * model.patch_size[1] * model.channels
    width = model.decoder_embed_dim
    macs = (
        num_patches * patch_dim * model.embed_dim
        + model.depth * block_macs(num_visible + 1, model.embed_dim, model.mlp_ratio)
        + (num_visible + 1) * model.embed_dim * width
        + model.decoder_depth * block_macs(num_patches + 1, width, model.mlp_ratio)
        + (num_patches + 1) * width * patch_dim
    )
    return 3 * 2 * macs
