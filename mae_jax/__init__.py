"""Masked autoencoders (He et al., arXiv 2111.06377) in JAX and Flax.

import mae_jax

model = mae_jax.load("runs/demo")  # a run, or an official, Hugging Face or timm model
features = model.features(model.load_images("photos"))  # [N, D]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_jax.inference import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # imported on first use, because it imports JAX, which takes seconds
        from mae_jax.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # for completion in notebooks
