"""Reads and writes weights: ours, the official code's, Hugging Face's and timm's."""

from mae_jax.convert.hints import Hints
from mae_jax.convert.load import load, load_with_average
from mae_jax.convert.readers import is_file
from mae_jax.convert.save import FORMATS, save
from mae_jax.convert.weights import LoadReport, Weights

__all__ = [
    "FORMATS",
    "Hints",
    "Weights",
    "LoadReport",
    "is_file",
    "load",
    "load_with_average",
    "save",
]
