"""Masked autoencoders (He et al., arXiv 2111.06377) in JAX and Flax.

import mae_jax

model = mae_jax.load("clothing-96")  # or a run, an official, Hugging Face or timm model
features = model.features(model.load_images("photos"))  # [N, D]
"""

from typing import TYPE_CHECKING

from mae_jax.runtime import lazy

if TYPE_CHECKING:
    from mae_jax.inference import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"
__getattr__, __dir__ = lazy.exports(__name__, inference="load")
