"""Optax optimizers of the recipes, learning-rate schedules and parameter groups."""

from mae_jax.optim.build import make_optimizer
from mae_jax.optim.param_groups import layer_scale
from mae_jax.optim.schedules import warmup_cosine

__all__ = ["layer_scale", "make_optimizer", "warmup_cosine"]
