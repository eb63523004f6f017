"""The input pipeline. TensorFlow is imported with the first batch, not before."""

from mae_jax.data.options import DataOptions
from mae_jax.data.pipeline import Batches, eval_batches, load_images, train_batches
from mae_jax.data.sources.base import Record, Source
from mae_jax.data.sources.build import Sources, image_source, make_sources
from mae_jax.data.sources.folder import evaluation_folder, files_source, listed_files
from mae_jax.data.transforms.base import Field, Transform

__all__ = [
    "Batches",
    "DataOptions",
    "Field",
    "Record",
    "Source",
    "Sources",
    "Transform",
    "eval_batches",
    "evaluation_folder",
    "files_source",
    "image_source",
    "listed_files",
    "load_images",
    "make_sources",
    "train_batches",
]
