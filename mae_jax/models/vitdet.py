"""The plain ViT as a backbone for detection, and its simple feature pyramid (ViTDet, 2203.16527).

Parameters of the ViT are named as in `models.vit`, so that a pre-trained encoder loads by name.
`ViTDet` has no class token and no final norm. Like detectron2, it keeps the class token's row of
`pos_embed` without using it. It adds tables of relative positions: two for each block,
`blocks_i/attn/{rel_pos_h,rel_pos_w}`, or two for all of them (`shared_positions`),
`{window_positions,global_positions}/table`.

Levels of a pyramid are p2 to p6, of strides 4 to 64 for patches of 16. `SimpleFeaturePyramid` has
`p2/{deconv0,norm0,deconv1}`, `p3/deconv0`, and `{lateral,output}/{conv,norm}` in each of p2 to p5.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import conv, layers
from mae_jax.models.layers import Dtype, Initializer
from mae_jax.models.vit import block_macs
from mae_jax.ops import activations, windows
from mae_jax.ops.grid_attention import RowBias, decomposed_bias, grid_attention, table_bias
from mae_jax.ops.interpolate import resize_positions
from mae_jax.ops.patches import grid_size, patchify

ZEROS = nn.initializers.zeros_init()


class PositionTable(nn.Module):
    """Biases for all offsets on a grid, shared by several blocks: `table` [offsets, heads].

    Attributes:
      grid: (rows, columns) that the table is for; it is resized linearly for others.
      num_heads: of the blocks.
    """

    grid: tuple[int, int]
    num_heads: int

    @nn.compact
    def __call__(self, size: tuple[int, int]) -> tuple[RowBias, jax.Array]:
        """(bias, tables) for `grid_attention` on a grid `size`."""
        offsets = (2 * self.grid[0] - 1, 2 * self.grid[1] - 1)
        table = self.param("table", ZEROS, (offsets[0] * offsets[1], self.num_heads))
        return table_bias(table.reshape(*offsets, self.num_heads), size)


class GridAttention(nn.Module):
    """Multi-head self-attention on a grid of tokens, with relative positions.

    Attributes:
      num_heads: of the attention.
      grid: (rows, columns) that the tables of relative positions are for.
      dtype: of the arithmetic.
      kernel_init: of the linear layers.
      query_chunk: see `grid_attention`.
      positions: shared table; None gives this layer two tables of its own.
    """

    num_heads: int
    grid: tuple[int, int]
    dtype: Dtype
    kernel_init: Initializer
    query_chunk: int
    positions: PositionTable | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, D] -> [B, H, W, D]."""
        batch, height, width, dim = x.shape
        tokens = x.reshape(batch, height * width, dim)
        qkv = layers.QKV(self.dtype, self.kernel_init, name="qkv")(tokens, height * width)
        heads = (height, width, self.num_heads, dim // self.num_heads)
        q, k, v = (y.reshape(batch, *heads) for y in qkv)
        bias, tables = self._bias(dim // self.num_heads, (height, width))
        x = grid_attention(q, k, v, bias, tables, self.query_chunk).reshape(x.shape)
        return layers.dense(dim, self.dtype, "proj", self.kernel_init)(x)

    def _bias(self, dim: int, size: tuple[int, int]) -> tuple[RowBias, jax.Array]:
        if self.positions is not None:
            return self.positions(size)
        rel_h = self.param("rel_pos_h", ZEROS, (2 * self.grid[0] - 1, dim))
        rel_w = self.param("rel_pos_w", ZEROS, (2 * self.grid[1] - 1, dim))
        return decomposed_bias(rel_h, rel_w, size)


class GridBlock(layers.Block):
    """Transformer block on a map [B, H, W, D], with attention in windows or over the whole map.

    Attributes:
      grid: (rows, columns) of the whole map that the tables of global attention are for.
      window: side of the windows; 0 for global attention.
      query_chunk, positions: see `GridAttention`.
    """

    grid: tuple[int, int] = (0, 0)
    window: int = 0
    query_chunk: int = 0
    positions: PositionTable | None = None

    def attend(self, x: jax.Array, num_queries: int) -> jax.Array:
        """Attention of the normalized map [B, H, W, D].

        As in detectron2, padding in windows is not masked: its keys and values are the biases.
        """
        del num_queries
        attn = GridAttention(
            self.num_heads,
            (self.window, self.window) if self.window else self.grid,
            self.dtype,
            self.kernel_init,
            self.query_chunk,
            self.positions,
            name="attn",
        )
        if not self.window:
            return attn(x)
        size = (x.shape[1], x.shape[2])
        return windows.unpartition(attn(windows.partition(x, self.window)), size)


def quarter_ends(depth: int) -> tuple[int, ...]:
    """The last block of each quarter, counted from 0."""
    return tuple(depth * i // 4 - 1 for i in range(1, 5))


class ViTDet(nn.Module):
    """The backbone: normalized images to the map after the last block.

    Attributes:
      image_size: (H, W) in training, which sizes the tables of global attention. Other sizes work.
      patch_size: (ph, pw).
      channels: C.
      embed_dim, depth, num_heads, mlp_ratio: of the blocks.
      window: side of the windows, in patches.
      global_blocks: blocks with global attention; None is the last of each quarter.
      table_grid: (rows, columns) of `pos_embed`, which is resized in every forward pass.
      shared_positions: one table of relative positions for all windowed blocks and one for all
        global blocks, instead of two for each block.
      drop_path: stochastic depth rate of the last block; increases linearly from 0 in the first.
      dtype: of the arithmetic; parameters are float32.
      remat: a key of `layers.REMAT`. Attention weights are always recomputed.
      query_chunk: most queries of an image whose attention weights exist at once.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    window: int = 14
    global_blocks: tuple[int, ...] | None = None
    table_grid: tuple[int, int] = (14, 14)
    shared_positions: bool = False
    drop_path: float = 0.0
    dtype: Dtype = jnp.float32
    remat: str = "none"
    query_chunk: int = 512

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of an image in training."""
        return grid_size(self.image_size, self.patch_size)

    @property
    def block_windows(self) -> list[int]:
        """Window of each block; 0 for global attention."""
        ends = quarter_ends(self.depth) if self.global_blocks is None else self.global_blocks
        return [0 if i in ends else self.window for i in range(self.depth)]

    def setup(self):
        rows = 1 + self.table_grid[0] * self.table_grid[1]
        self.patch_embed = layers.PatchEmbed(self.embed_dim, self.patch_size, self.dtype, False)
        self.pos_embed = self.param("pos_embed", layers.NORMAL, (1, rows, self.embed_dim))
        if self.shared_positions:
            window = (self.window, self.window)
            self.window_positions = PositionTable(window, self.num_heads)
            self.global_positions = PositionTable(self.grid, self.num_heads)
        block = layers.block_class(self.remat, GridBlock)
        self.blocks = [
            block(
                self.num_heads,
                self.mlp_ratio,
                self.dtype,
                kernel_init=layers.NORMAL,
                drop_path=self.drop_path * i / max(self.depth - 1, 1),
                grid=self.grid,
                window=window,
                query_chunk=self.query_chunk,
                positions=self._shared(window),
            )
            for i, window in enumerate(self.block_windows)
        ]

    def _shared(self, window: int) -> PositionTable | None:
        if not self.shared_positions:
            return None
        return self.window_positions if window else self.global_positions

    def __call__(self, images: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """The map after the last block, [B, H / ph, W / pw, D] in `dtype`.

        Args:
          images: normalized, [B, H, W, C].
          noise: uniform [B, depth, 2] for stochastic depth; None drops nothing.

        Raises:
          ValueError: the image size is not a multiple of the patch size.
        """
        return self.features(images, (self.depth - 1,), noise)[0]

    def features(
        self, images: jax.Array, taps: tuple[int, ...], noise: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """Maps after the blocks `taps`, counted from 0; arguments as in `__call__`."""
        x = self.embed(images)
        maps = {}
        for i, block in enumerate(self.blocks[: max(taps) + 1]):
            x = maps[i] = block(x, None, None if noise is None else noise[:, i])
        return tuple(maps[i] for i in taps)

    def embed(self, images: jax.Array) -> jax.Array:
        """The map before the first block: patches with positions."""
        grid = grid_size((images.shape[1], images.shape[2]), self.patch_size)
        x = self.patch_embed(patchify(images, self.patch_size))
        positions = resize_positions(self.pos_embed, self.table_grid, grid)
        return x.reshape(-1, *grid, self.embed_dim) + positions.astype(self.dtype)


class _Level(nn.Module):
    """One level: doubles the map `doublings` times, then two convolutions with norms."""

    width: int
    doublings: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dim = x.shape[-1]
        for i in range(self.doublings):
            if i:
                x = layers.layer_norm(self.dtype, f"norm{i - 1}")(x)
                x = activations.gelu(x)
            x = conv.Deconv2x2(dim // 2 ** (i + 1), self.dtype, name=f"deconv{i}")(x)
        x = conv.ConvNorm(self.width, 1, self.dtype, name="lateral")(x)
        return conv.ConvNorm(self.width, 3, self.dtype, name="output")(x)


class SimpleFeaturePyramid(nn.Module):
    """Five levels from the last map of a plain backbone (2203.16527, section 3).

    Attributes:
      width: channels of every level.
      dtype: of the arithmetic.
    """

    width: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Map [B, H, W, D] -> (p2, ..., p6): [B, 4 H, 4 W, width] to [B, ~H / 4, ~W / 4, width].

        Odd sizes: p5 has H // 2 rows, p6 has half of these, rounded up.
        """
        p2 = _Level(self.width, 2, self.dtype, name="p2")(x)
        p3 = _Level(self.width, 1, self.dtype, name="p3")(x)
        p4 = _Level(self.width, 0, self.dtype, name="p4")(x)
        p5 = _Level(self.width, 0, self.dtype, name="p5")(conv.max_pool(x))
        return p2, p3, p4, p5, p5[:, ::2, ::2]


def forward_macs(model: ViTDet, image_size: tuple[int, int] | None = None) -> float:
    """Multiply-adds of the backbone for one image, without those of relative positions (0.5 %).

    Args:
      model: the backbone.
      image_size: (H, W); None is the model's.
    """
    rows, columns = grid_size(image_size or model.image_size, model.patch_size)
    tokens, dim = rows * columns, model.embed_dim
    patch_dim = model.patch_size[0] * model.patch_size[1] * model.channels
    total = float(tokens * patch_dim * dim)
    for window in model.block_windows:
        if not window:
            total += block_macs(tokens, dim, model.mlp_ratio)
            continue
        height, width = windows.padded_size((rows, columns), window)
        total += height * width * (4 * dim**2 + 2 * window**2 * dim)
        total += 2 * model.mlp_ratio * tokens * dim**2
    return total


def pyramid_macs(grid: tuple[int, int], dim: int, width: int = 256) -> float:
    """Multiply-adds of `SimpleFeaturePyramid` for one map [*grid, dim]."""
    tokens = grid[0] * grid[1]
    deconv = 4 * tokens * dim * (dim // 2)  # D -> D / 2 at the backbone's resolution
    second = 4 * (4 * tokens) * (dim // 2) * (dim // 4)
    channels = {16: dim // 4, 4: dim // 2, 1: dim, 0.25: dim}  # by positions relative to the map
    levels = sum(tokens * n * width * (c + 9 * width) for n, c in channels.items())
    return 2 * deconv + second + levels
