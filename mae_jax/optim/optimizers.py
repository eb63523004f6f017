"""The optimizers of the recipes as optax chains."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from mae_jax.ops.trees import map_with_names
from mae_jax.optim.param_groups import Decays, decays
from mae_jax.optim.schedules import Schedule


def adamw(
    schedule: Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    grad_clip: float = 0.0,
    mu_dtype: str = "float32",
    decays: Decays = decays,
    scale: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """AdamW as in torch: weight decay times the learning rate, eps 1e-8 outside the square root.

    Args:
      schedule: learning rate by step.
      b1, b2: decay rates of the first and second moment.
      weight_decay: decoupled weight decay.
      grad_clip: maximum global gradient norm; 0 does not clip, as in the paper.
      mu_dtype: dtype of the first moment; bfloat16 halves its memory at lower precision.
      decays: selects the parameters with weight decay, by name and number of axes.
      scale: maps a parameter's name to a factor on its learning rate (layer-wise decay). As with
        torch's parameter groups, it also scales the weight decay.
    """
    return optax.chain(
        _clip(grad_clip),
        optax.scale_by_adam(b1=b1, b2=b2, eps=1e-8, mu_dtype=mu_dtype),
        optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, decays)),
        *([_scale_by_name(scale)] if scale else []),
        optax.scale_by_learning_rate(schedule),
    )


def lars(
    schedule: Schedule,
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float = 0.001,
    grad_clip: float = 0.0,
) -> optax.GradientTransformation:
    """LARS as in the official linear probing (util/lars.py); differs from `optax.lars`.

    The gradient of a matrix, including weight decay, is scaled by trust * |w| / |g|. Vectors get
    neither decay nor scaling. Momentum accumulates the scaled gradients; the learning rate is
    applied last.

    Args:
      schedule: learning rate by step.
      momentum: heavy-ball momentum, without dampening.
      weight_decay: added to the gradient before scaling.
      trust_coefficient: `trust` above.
      grad_clip: maximum global gradient norm; 0 does not clip.
    """

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        _clip(grad_clip),
        optax.add_decayed_weights(weight_decay, mask=matrices),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), matrices),
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    )


def _clip(grad_clip: float) -> optax.GradientTransformation:
    # Always one entry of the chain, so that a run can turn clipping on when it resumes.
    return optax.clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()


def decay_mask(params: Any, decays: Decays = decays) -> Any:
    """Tree of bools shaped like `params`: True where weight decay applies."""
    return map_with_names(params, lambda name, p: decays(name, len(p.shape)))


def _scale_by_name(scale: Callable[[str], float]) -> optax.GradientTransformation:
    """Multiplies each update by a factor that depends on the parameter's name."""
    return optax.stateless(
        lambda updates, params: map_with_names(updates, lambda name, u: u * scale(name))
    )
