"""Greedy non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp

from mae_jax.ops.boxes import iou

BLOCK = 256  # boxes decided at a time: the largest intermediate is [BLOCK, N]


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    threshold: float,
    groups: jax.Array | None = None,
) -> jax.Array:
    """Keeps the best of the boxes that overlap.

    In order of descending score, a box is kept unless its intersection over union with a kept box
    of its group exceeds `threshold`. Of equal scores, the lower index comes first.

    Args:
      boxes: float32 [N, 4].
      scores: float32 [N]; finite or infinite where valid.
      valid: bool [N]; other boxes are not kept and suppress nothing, whatever their coordinates.
      threshold: largest overlap of two boxes that are kept.
      groups: int [N], such as classes or levels; None for a single group.

    Returns:
      bool [N] in the order of the input: whether a box is kept.

    Raises:
      TypeError: boxes or scores are not float32; coordinates in half precision overlap differently.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    for name, array in (("boxes", boxes), ("scores", scores)):
        if array.dtype != jnp.float32:
            raise TypeError(f"nms needs float32 {name}, not {array.dtype}")
    number = len(scores)
    order = jnp.lexsort((-scores, ~valid))  # stable
    block = min(BLOCK, number)
    padding = -number % block
    boxes = jnp.pad(boxes[order], ((0, padding), (0, 0)))
    groups = None if groups is None else jnp.pad(groups[order], (0, padding))
    candidates = jnp.pad(valid[order], (0, padding))
    position = jnp.arange(number + padding)

    def decide(index: jax.Array, kept: jax.Array) -> jax.Array:
        """Settles the boxes of one block; later boxes lose those that the block suppresses."""

        def rows(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, index * block, block)

        suppresses = (iou(rows(boxes), boxes) > threshold) & (rows(position)[:, None] < position)
        if groups is not None:
            suppresses &= rows(groups)[:, None] == groups
        inside = jax.lax.dynamic_slice_in_dim(suppresses, index * block, block, axis=1)
        winners = _settle(rows(kept), inside)
        return kept & ~(winners[:, None] & suppresses).any(axis=0)

    kept = jax.lax.fori_loop(0, (number + padding) // block, decide, candidates)
    return jnp.zeros(number, bool).at[order].set(kept[:number])


def _settle(candidates: jax.Array, suppresses: jax.Array) -> jax.Array:
    """The candidates that greedy suppression keeps.

    Suppression is repeated from all candidates until nothing changes. After step n, the fate of
    every box is right whose chain of better, overlapping boxes has at most n links.

    Args:
      candidates: bool [n] in order of descending score.
      suppresses: bool [n, n], strictly upper triangular.
    """

    def changed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (state[0] != state[1]).any()

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = state
        return candidates & ~(kept[:, None] & suppresses).any(axis=0), kept

    return jax.lax.while_loop(changed, step, (candidates, jnp.zeros_like(candidates)))[0]
