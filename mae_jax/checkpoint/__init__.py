"""Runs on disk: writing, finding, verifying and reading checkpoints."""

from typing import TYPE_CHECKING

from mae_jax.runtime import lazy

if TYPE_CHECKING:
    from mae_jax.checkpoint.checkpointer import Checkpointer, save_weights
    from mae_jax.checkpoint.layout import CheckpointPath, find
    from mae_jax.checkpoint.reader import CorruptCheckpointError, load_arrays, load_metadata

__all__ = [
    "CheckpointPath",
    "Checkpointer",
    "CorruptCheckpointError",
    "find",
    "load_arrays",
    "load_metadata",
    "save_weights",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    checkpointer="Checkpointer save_weights",
    layout="CheckpointPath find",
    reader="CorruptCheckpointError load_arrays load_metadata",
)
