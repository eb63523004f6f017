"""Which patches the encoder sees (paper section 3, "Masking"; kinds: table 1f, figure 6).

A kind of mask is a distribution of noise: the patches with the lowest noise stay visible. Every
image of a `Masking` has the same, static number of visible patches, so shapes are static under jit.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.runtime import extensions

# Block-wise masking of BEiT (Bao et al., 2106.08254, algorithm 1).
MIN_BOX_AREA = 16 / 196  # 16 of 14 x 14 patches, as a fraction of the grid
MAX_ASPECT = 1 / 0.3  # ratio of a box's longer to its shorter side
TRIES = 10  # for each box


@flax.struct.dataclass
class Masking:
    """A shuffled list of patches for each image, of which the first `len_keep` are visible.

    Attributes:
      ids_shuffle: int32 [B, L], a permutation of the patch indices.
      len_keep: number of visible patches (a Python int).
    """

    ids_shuffle: jax.Array
    len_keep: int = flax.struct.field(pytree_node=False)

    @property
    def ids_keep(self) -> jax.Array:
        """Indices of the visible patches [B, len_keep], in shuffled order."""
        return self.ids_shuffle[:, : self.len_keep]

    @property
    def ids_masked(self) -> jax.Array:
        """Indices of the masked patches [B, L - len_keep], in shuffled order."""
        return self.ids_shuffle[:, self.len_keep :]

    @property
    def ids_restore(self) -> jax.Array:
        """Position [B, L] of each patch in the shuffled list; gathering by it unshuffles."""
        return jnp.argsort(self.ids_shuffle, axis=1)

    @property
    def mask(self) -> jax.Array:
        """float32 [B, L] in image order: 0 is visible, 1 is masked."""
        return (self.ids_restore >= self.len_keep).astype(jnp.float32)


def num_keep(num_patches: int, mask_ratio: float) -> int:
    """Number of visible patches: `num_patches * (1 - mask_ratio)` rounded down in float64.

    Raises:
      ValueError: the ratio is outside [0, 1), or leaves no patch visible.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask ratio {mask_ratio} is outside [0, 1)")
    keep = int(num_patches * (1 - mask_ratio))
    if keep < 1:
        raise ValueError(f"mask ratio {mask_ratio} leaves none of {num_patches} patches visible")
    return keep


def from_noise(noise: jax.Array, mask_ratio: float) -> Masking:
    """Keeps the patches with the lowest `noise` [B, L]; ties go to the lower index."""
    return Masking(jnp.argsort(noise, axis=1), num_keep(noise.shape[1], mask_ratio))


def from_mask(mask: jax.Array, len_keep: int) -> Masking:
    """Converts a `mask` [B, L], 1 = masked, with `len_keep` zeros in every row."""
    return Masking(jnp.argsort(mask, axis=1), len_keep)


def from_priority(priority: jax.Array, mask_ratio: float, key: jax.Array) -> Masking:
    """Masks the patches with the highest `priority`, [B, L], or [L] for a single image.

    Ties are broken at random. With priorities 0 and 1, for example, patches of priority 0 are
    masked only if there are too few of priority 1. `patches.patch_means` converts a map of pixels
    to patches.
    """
    priority = jnp.atleast_2d(priority)
    shuffled = jnp.argsort(jax.random.uniform(key, priority.shape), axis=1)
    order = jnp.argsort(jnp.take_along_axis(priority, shuffled, axis=1), axis=1, stable=True)
    ids = jnp.take_along_axis(shuffled, order, axis=1)
    return Masking(ids, num_keep(priority.shape[1], mask_ratio))


# Kinds of masks: functions of (key, batch, grid, len_keep) with grid = (rows, columns), that return
# noise float32 [B, L]. Sizes are Python ints; unsupported ones raise ValueError.


def random_noise(key: jax.Array, batch: int, grid: tuple[int, int], len_keep: int) -> jax.Array:
    """Uniform noise, independent for every image (random sampling)."""
    del len_keep
    return jax.random.uniform(key, (batch, grid[0] * grid[1]))


def block_noise(key: jax.Array, batch: int, grid: tuple[int, int], len_keep: int) -> jax.Array:
    """Noise of at least 1 in boxes drawn like BEiT's, less elsewhere (block-wise sampling).

    The area of a box is uniform between `MIN_BOX_AREA` and the number of patches still to be
    masked. Its height / width is log-uniform between 1 / `MAX_ASPECT` and `MAX_ASPECT`, and its
    sides are rounded. A box is accepted if it is smaller than the grid in both directions and masks
    at least one new patch but not too many. Drawing ends after `TRIES` rejections in a row. The
    rest (of 14 x 14 patches 0.4 % at ratio 0.75, less than 5 % at ratios from 0.1) is masked at
    random, so that every image keeps `len_keep` patches.

    Raises:
      ValueError: the grid has fewer than two rows or columns.
    """
    if min(grid) < 2:
        raise ValueError(
            f"mask kind block: there is no room for boxes in {grid[0]} x {grid[1]} patches"
        )
    boxes, rest = jax.random.split(key)
    num_patches = grid[0] * grid[1]
    draw = jax.vmap(lambda k: _draw_boxes(k, grid, num_patches - len_keep))
    hidden = draw(jax.random.split(boxes, batch)).reshape(batch, num_patches)
    return hidden + random_noise(rest, batch, grid, len_keep)


def _draw_boxes(key: jax.Array, grid: tuple[int, int], number: int) -> jax.Array:
    """bool [rows, columns]: the patches of one image in boxes, at most `number`."""
    rows, columns = grid
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        hidden, _, failed = state
        return (hidden.sum() < number) & (failed < TRIES)

    def attempt(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        hidden, drawn, failed = state
        remaining = number - hidden.sum()
        size, shape, y, x = jax.random.uniform(jax.random.fold_in(key, drawn), (4,))
        smallest = MIN_BOX_AREA * rows * columns  # may exceed `remaining`; boxes may overlap
        area = smallest + (remaining - smallest) * size
        aspect = jnp.exp(math.log(MAX_ASPECT) * (2 * shape - 1))
        height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top, left = jnp.floor(y * (rows - height + 1)), jnp.floor(x * (columns - width + 1))
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        new = (inside & ~hidden).sum()
        accept = (height < rows) & (width < columns) & (new > 0) & (new <= remaining)
        return hidden | (inside & accept), drawn + 1, jnp.where(accept, 0, failed + 1)

    start = jnp.zeros(grid, bool), jnp.int32(0), jnp.int32(0)
    return jax.lax.while_loop(unfinished, attempt, start)[0]


def grid_noise(key: jax.Array, batch: int, grid: tuple[int, int], len_keep: int) -> jax.Array:
    """Noise that is low in the top left patch of each 2 x 2 cell in all images (grid sampling).

    Raises:
      ValueError: odd numbers of rows or columns, or a mask ratio other than 0.75.
    """
    del key
    rule = "mask kind grid keeps one patch of every 2 x 2 cell"
    if grid[0] % 2 or grid[1] % 2:
        raise ValueError(f"{rule}: {grid[0]} x {grid[1]} patches are not even numbers")
    visible = np.zeros(grid, bool)
    visible[::2, ::2] = True
    return _fixed_pattern(rule, visible, batch, len_keep)


def checkerboard_noise(
    key: jax.Array, batch: int, grid: tuple[int, int], len_keep: int
) -> jax.Array:
    """Noise that is low in every other cell of 2 x 2 patches in all images: a checkerboard.

    Not in the paper. Keeps about half of the patches, spread as evenly as in `grid_noise`, but in
    groups of four neighbors.

    Raises:
      ValueError: a mask ratio other than the checkerboard's (0.5; 0.489 for 14 x 14 patches).
    """
    del key
    row, column = np.arange(grid[0])[:, None] // 2, np.arange(grid[1]) // 2
    rule = "mask kind checkerboard keeps every other cell of 2 x 2 patches"
    return _fixed_pattern(rule, (row + column) % 2 == 0, batch, len_keep)


def _fixed_pattern(rule: str, visible: np.ndarray, batch: int, len_keep: int) -> jax.Array:
    """Noise [batch, L] that keeps the patches `visible`, bool [rows, columns], in every image.

    Raises:
      ValueError: `len_keep` is not their number; the message starts with `rule`.
    """
    number, total = int(visible.sum()), visible.size
    if len_keep != number:
        scales = (10**digits for digits in range(1, 9))
        ratios = (math.floor((1 - number / total) * scale) / scale for scale in scales)
        ratio = next(ratio for ratio in ratios if num_keep(total, ratio) == number)
        raise ValueError(f"{rule}, {number} of {total}, not {len_keep}: its mask ratio is {ratio}")
    return jnp.tile(jnp.asarray(~visible.reshape(1, -1), jnp.float32), (batch, 1))


Noise = Callable[[jax.Array, int, tuple[int, int], int], jax.Array]
MASKS: dict[str, Noise] = {
    "random": random_noise,
    "block": block_noise,
    "grid": grid_noise,
    "checkerboard": checkerboard_noise,
}


def find(kind: str) -> Noise:
    """The function of `config.mask.kind`: a key of `MASKS`, or the user's own `module:function`.

    Raises:
      UsageError: there is no such function.
    """
    return extensions.find(MASKS, kind, "--config.mask.kind")


def check(noise: Noise, grid: tuple[int, int], len_keep: int) -> None:
    """Checks that a kind of mask supports a grid of patches with `len_keep` of them visible.

    Raises:
      ValueError: it does not, or the function does not return float noise of the right shape.
    """
    # Sizes are static, so tracing the function is enough to raise its errors.
    key = jax.eval_shape(lambda: jax.random.key(0))
    result = jax.eval_shape(lambda key: noise(key, 1, grid, len_keep), key)
    shape = (1, grid[0] * grid[1])
    if result.shape != shape or not jnp.issubdtype(result.dtype, jnp.floating):
        raise ValueError(
            f"the mask's noise is {result.dtype}{list(result.shape)}, not float{list(shape)}"
        )


def masks(
    key: jax.Array, batch: int, grid: tuple[int, int], mask_ratio: float, noise: Noise
) -> Masking:
    """Draws masks for `batch` images with `grid` patches (rows, columns) from the kind `noise`.

    Raises:
      ValueError: see `num_keep` and `check`.
    """
    keep = num_keep(grid[0] * grid[1], mask_ratio)
    check(noise, grid, keep)
    return from_noise(noise(key, batch, grid, keep), mask_ratio)
