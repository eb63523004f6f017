"""Optax chains of the recipes."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from mae_jax.ops.trees import map_with_names
from mae_jax.optim.param_groups import decays
from mae_jax.optim.schedules import Schedule


def adamw(
    schedule: Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    grad_clip: float = 0.0,
    mu_dtype: str = "float32",
    exempt: tuple[str, ...] = (),
    scale: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """AdamW as in torch: decay multiplied by the learning rate, eps 1e-8 outside the root.

    Args:
      schedule: learning rate by step.
      b1: decay of the first moment.
      b2: decay of the second moment.
      weight_decay: decoupled decay, of the parameters that `decays` names.
      grad_clip: largest global gradient norm; 0 leaves gradients alone, as the paper does.
      mu_dtype: what the first moment is kept in; bfloat16 takes half the memory, and is not exact.
      exempt: names that are not decayed either.
      scale: factor on the learning rate of a parameter, by its name (layer-wise decay). As in
        torch, where it is the rate of a parameter group, it acts on the weight decay too.
    """
    return optax.chain(
        _clip(grad_clip),
        optax.scale_by_adam(b1=b1, b2=b2, eps=1e-8, mu_dtype=mu_dtype),
        optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, exempt)),
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
    """LARS as the official linear probing has it (util/lars.py; `optax.lars` is another).

    The gradient of a matrix, decay added, is scaled by trust * |w| / |g|; vectors get neither decay
    nor scaling. Momentum gathers the scaled gradients, and the learning rate comes last.

    Args:
      schedule: learning rate by step.
      momentum: of the heavy ball, without damping.
      weight_decay: added to the gradient before it is scaled.
      trust_coefficient: as above.
      grad_clip: largest global gradient norm; 0 leaves gradients alone.
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
    # Always a slot, so that clipping can be switched on for the rest of a run.
    return optax.clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()


def decay_mask(params: Any, exempt: tuple[str, ...] = ()) -> Any:
    """Tree of bools shaped like `params`: True where weight decay applies."""
    return map_with_names(params, lambda name, p: decays(name, len(p.shape), exempt))


def _scale_by_name(scale: Callable[[str], float]) -> optax.GradientTransformation:
    """Multiplies every update by a number that its name decides."""
    return optax.stateless(
        lambda updates, params: map_with_names(updates, lambda name, u: u * scale(name))
    )
