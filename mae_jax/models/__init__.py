"""Flax Linen modules, the targets they predict, and building them from a configuration."""

from mae_jax.models.factory import build_mae, build_vit
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.vit import SIZES, VisionTransformer

__all__ = ["SIZES", "MaskedAutoencoder", "VisionTransformer", "build_mae", "build_vit"]
