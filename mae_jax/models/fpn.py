"""Feature pyramid network on four maps of a plain ViT: the protocol of the MAE paper, section 5.

Details as in Li et al. (2111.11429) and its reproduction hustvl/MIMDet: the maps after the last
block of each quarter are brought to strides 4, 8, 16 and 32, then joined from coarse to fine with
BatchNorm and no activations. The backbone is `vitdet.ViTDet` with `shared_positions`, windows of 16
and the taps `quarter_ends`.

Parameters of `FeaturePyramid`: `adaptor/{p2_deconv0,p2_norm,p2_deconv1,p3_deconv}` and, for levels
2 to 5, `lateral2/{conv,norm}`, `output2/{conv,norm}`, ...
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import conv
from mae_jax.models.layers import Dtype
from mae_jax.ops import activations

LECUN = nn.initializers.lecun_normal()
LEVELS = (2, 3, 4, 5)


class Adaptor(nn.Module):
    """Four maps of one size to four of strides 4, 8, 16 and 32 (for patches of 16).

    Attributes:
      dtype: of the arithmetic.
      kind: norm between the two transposed convolutions of the first map; see `conv.norm`.
    """

    dtype: Dtype
    kind: str = "group"

    @nn.compact
    def __call__(self, taps: Sequence[jax.Array], train: bool = False) -> list[jax.Array]:
        """Maps [B, H, W, D] -> [B, 4 H, 4 W, D], [B, 2 H, 2 W, D], [B, H, W, D], [B, ~H / 2, ...].

        `train` as in `conv.BatchNorm`.
        """
        dim = taps[0].shape[-1]

        def double(x: jax.Array, name: str) -> jax.Array:
            return conv.Deconv2x2(dim, self.dtype, kernel_init=LECUN, name=name)(x)

        p2 = double(taps[0], "p2_deconv0")
        p2 = conv.norm(self.kind, p2, dtype=self.dtype, name="p2_norm", train=train)
        p2 = double(activations.gelu(p2), "p2_deconv1")
        return [p2, double(taps[1], "p3_deconv"), taps[2], conv.max_pool(taps[3])]


class FeaturePyramid(nn.Module):
    """The adaptor, then a feature pyramid network (Lin et al., 1612.03144) with norms.

    Attributes:
      width: channels of every level.
      dtype: of the arithmetic.
      kind: norm of the pyramid; see `conv.norm`. "batch" keeps running statistics in `batch_stats`.
    """

    width: int = 256
    dtype: Dtype = jnp.float32
    kind: str = "batch"

    @nn.compact
    def __call__(self, taps: Sequence[jax.Array], train: bool = False) -> tuple[jax.Array, ...]:
        """Joins the maps.

        Args:
          taps: four maps [B, H, W, D] of the backbone, in the order of its blocks.
          train: as in `conv.BatchNorm`.

        Returns:
          (p2, ..., p6), [B, 4 H, 4 W, width] to [B, ~H / 4, ~W / 4, width].
        """

        def layer(x: jax.Array, part: str, level: int, size: int) -> jax.Array:
            module = conv.ConvNorm(
                self.width,
                size,
                self.dtype,
                self.kind,
                kernel_init=conv.XAVIER,
                name=f"{part}{level}",
            )
            return module(x, train)

        maps = Adaptor(self.dtype, name="adaptor")(taps, train)
        laterals = [layer(x, "lateral", i, 1) for x, i in zip(maps, LEVELS, strict=True)]
        for i in (2, 1, 0):
            size = (laterals[i].shape[1], laterals[i].shape[2])
            laterals[i] += conv.upsample(laterals[i + 1], size)
        p2, p3, p4, p5 = (layer(x, "output", i, 3) for x, i in zip(laterals, LEVELS, strict=True))
        return p2, p3, p4, p5, p5[:, ::2, ::2]


def pyramid_macs(grid: tuple[int, int], dim: int, width: int = 256) -> float:
    """Multiply-adds of `FeaturePyramid` for one image with maps [*grid, dim]."""
    tokens = grid[0] * grid[1]
    doubling = 4 * tokens * dim**2
    positions = sum(tokens * n for n in (16, 4, 1, 0.25))
    return 6 * doubling + positions * width * (dim + 9 * width)  # p2: 1 + 4 doublings, p3: 1
