"""Weights in and out: the official code's, Hugging Face's, timm's, and our own."""

from mae_jax.convert.facts import Hints
from mae_jax.convert.files import is_file
from mae_jax.convert.load import load, load_with_average
from mae_jax.convert.model import Model, Report
from mae_jax.convert.save import FORMATS, save

__all__ = ["FORMATS", "Hints", "Model", "Report", "is_file", "load", "load_with_average", "save"]
