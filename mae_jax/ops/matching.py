"""Assigns boxes to ground truth and samples them for a loss, with static shapes (1506.01497)."""

import jax
import jax.numpy as jnp


def match(
    iou: jax.Array, valid: jax.Array, *, low: float, high: float, low_quality: bool
) -> tuple[jax.Array, jax.Array]:
    """Matches each of A boxes with the ground truth that it overlaps most.

    Args:
      iou: [G, A] of at least one ground truth with all boxes.
      valid: bool [G]; padding never matches.
      low, high: a box is negative below `low`, positive from `high`, otherwise ignored.
      low_quality: boxes that overlap a ground truth as much as its best box does, if at all, are
        positive at any overlap. They keep their own match, which may be another ground truth.

    Returns:
      The index of the matched ground truth, int32 [A], 0 if there is none (the lowest index if
      several overlap equally), and the label, int32 [A]: 1 positive, 0 negative, -1 ignored.
    """
    # Computed once: recomputed in another fusion, an overlap may round differently and no longer
    # equal the maximum that it is.
    iou = jax.lax.optimization_barrier(jnp.where(valid[:, None], iou, -1))
    best = iou.max(axis=0)
    labels = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
    if low_quality:
        # Without the second condition, a ground truth that overlaps nothing would match everything.
        highest = iou.max(axis=1, keepdims=True)
        labels = jnp.where(((iou == highest) & (highest > 0)).any(axis=0), 1, labels)
    return jnp.argmax(iou, axis=0).astype(jnp.int32), labels.astype(jnp.int32)


def sample(
    key: jax.Array, labels: jax.Array, num: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws up to `num` boxes uniformly, without replacement, positives first.

    Args:
      key: JAX PRNG key.
      labels: int [A], see `match`; ignored boxes are never drawn.
      num: number of slots; may exceed A.
      positive_fraction: at most `int(num * positive_fraction)` positives are drawn. Negatives fill
        the other slots, also those that positives leave.

    Returns:
      Indices, int32 [num], labels, int32 [num] of 1 and 0, and bool [num]: whether the slot is in
      use. Unused slots have index 0 and label 0.
    """
    draw = jax.random.uniform(key, labels.shape)
    size = labels.shape[0]
    limit = min(int(num * positive_fraction), size)
    _, positives = jax.lax.top_k(jnp.where(labels == 1, draw, -1), limit)
    _, negatives = jax.lax.top_k(jnp.where(labels == 0, draw, -1), min(num, size))
    num_positives = jnp.minimum((labels == 1).sum(), limit)
    num_negatives = jnp.minimum((labels == 0).sum(), num - num_positives)

    slot = jnp.arange(num)
    positive = slot < num_positives
    valid = slot < num_positives + num_negatives
    # Negatives follow the positives: their list begins at slot `num_positives`.
    indices = jnp.where(
        positive,
        jnp.pad(positives, (0, num - limit)),
        jnp.take(negatives, slot - num_positives, mode="clip"),
    )
    indices = jnp.where(valid, indices, 0).astype(jnp.int32)
    return indices, positive.astype(jnp.int32), valid
