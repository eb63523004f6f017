"""Losses of Mask R-CNN for one image, as (sum, count) pairs.

Dividing the sums of all images by the counts of all images gives detectron2's losses of a batch on
one device; averaging the quotients of the images gives those of one image per device, the setting
of the published results.
"""

import jax
import jax.numpy as jnp
import optax

from mae_jax.ops import boxes as box_ops

Sums = dict[str, tuple[jax.Array, jax.Array]]
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def rpn_losses(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array,
    targets: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
) -> Sums:
    """Objectness and box losses of N sampled anchors.

    Both counts are N, even if fewer anchors are valid.

    Args:
      logits: objectness [N].
      deltas: predicted [N, 4].
      anchors: [N, 4].
      targets: matched boxes [N, 4]; only those of positives are used.
      labels: 1 for positives, 0 for negatives, [N].
      valid: bool [N].
    """
    count = jnp.float32(logits.shape[0])
    entropy = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
    distance = _l1(deltas, anchors, targets, valid & (labels == 1), RPN_WEIGHTS)
    return {
        "loss_rpn_cls": (jnp.where(valid, entropy, 0.0).sum(), count),
        "loss_rpn_box": (distance, count),
    }


def box_losses(
    logits: jax.Array,
    deltas: jax.Array,
    proposals: jax.Array,
    targets: jax.Array,
    classes: jax.Array,
    positive: jax.Array,
    valid: jax.Array,
) -> Sums:
    """Classification and box losses of R sampled proposals; both counts are the valid ones.

    Args:
      logits: [R, K + 1], the background last.
      deltas: predicted for each class, [R, K, 4].
      proposals: [R, 4].
      targets: matched boxes [R, 4]; only those of positives are used.
      classes: int32 [R]; K is the background.
      positive, valid: bool [R].
    """
    count = valid.sum().astype(jnp.float32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    own = jnp.where(positive, classes, 0)
    deltas = jnp.take_along_axis(deltas, own[:, None, None], axis=1)[:, 0]
    distance = _l1(deltas, proposals, targets, positive, ROI_WEIGHTS)
    return {
        "loss_cls": (jnp.where(valid, entropy, 0.0).sum(), count),
        "loss_box": (distance, count),
    }


def mask_loss(
    logits: jax.Array, targets: jax.Array, classes: jax.Array, positive: jax.Array
) -> Sums:
    """Mask loss of the positive proposals' own classes; the count is their number of pixels.

    Args:
      logits: [F, h, w, K].
      targets: bool [F, h, w].
      classes: int32 [F].
      positive: bool [F].
    """
    own = jnp.where(positive, classes, 0)
    logits = jnp.take_along_axis(logits, own[:, None, None, None], axis=-1)[..., 0]
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets.astype(jnp.float32))
    total = jnp.where(positive, entropy.sum((1, 2)), 0.0).sum()
    pixels = targets.shape[1] * targets.shape[2]
    return {"loss_mask": (total, positive.sum() * jnp.float32(pixels))}


def _l1(
    deltas: jax.Array,
    sources: jax.Array,
    targets: jax.Array,
    positive: jax.Array,
    weights: box_ops.Weights,
) -> jax.Array:
    """Sum over positives of |predicted - true deltas|."""
    true = box_ops.encode(sources, targets, weights)
    return jnp.where(positive[:, None], jnp.abs(deltas - true), 0.0).sum()
