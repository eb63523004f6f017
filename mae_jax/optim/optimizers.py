"""Optax chains of the recipes."""

import optax

from mae_jax.optim.param_groups import weight_decay_mask
from mae_jax.optim.schedules import Schedule


def adamw(
    schedule: Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    grad_clip: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW as in torch: decay multiplied by the learning rate, eps 1e-8 outside the root.

    Args:
      schedule: learning rate by step.
      b1: decay of the first moment.
      b2: decay of the second moment.
      weight_decay: decoupled decay, of the parameters `weight_decay_mask` names.
      grad_clip: largest global gradient norm; 0 leaves gradients alone, as the paper does.
    """
    # Always a slot, so that clipping can be switched on for the rest of a run.
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=b1, b2=b2, eps=1e-8),
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
