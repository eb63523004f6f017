"""The tokenizer of a run: that of the checkpoint it continues, or `config.target.tokenizer`."""

import contextlib
import logging
from typing import Any

from mae_jax import checkpoint, step_folders
from mae_jax.config import require
from mae_jax.convert import tokenizer

log = logging.getLogger(__name__)


def find(config: Any, workdir: str) -> tokenizer.Tokenizer:
    """The tokenizer; where a checkpoint will bring its arrays, only their shapes.

    Raises:
      UsageError: there is none, or it is damaged, not whole, or something else.
    """
    if kept := _kept(config, workdir):
        return tokenizer.described(kept)
    found = tokenizer.load(config.target.tokenizer)
    log.info("tokenizer %s: sha256 %s", config.target.tokenizer, found.sha256)
    return found


def vocab_size(config: Any, workdir: str) -> int:
    """Its number of codes. Raises as `find`."""
    if kept := _kept(config, workdir):
        return tokenizer.described(kept).sizes["vocab_size"]
    require(
        config.target.tokenizer != "",
        "--config.target.kind=tokens needs --config.target.tokenizer: a run of "
        "configs/tokenizer.py, or DALL-E's encoder.pkl (docs/recipes.md)",
    )
    return tokenizer.vocab_size(config.target.tokenizer)


def _kept(config: Any, workdir: str) -> dict[str, Any] | None:
    """What the checkpoint that a run will continue says of its tokenizer."""
    metadata: dict[str, Any] = {}
    if workdir and checkpoint.exists(workdir):
        metadata = _newest(workdir)
    elif config.resume:
        metadata = checkpoint.read_one(config.resume, checkpoint.load_metadata)
    target = metadata.get("target", {})
    return target["tokenizer"] if target.get("kind") == "tokens" else None


def _newest(workdir: str) -> dict[str, Any]:
    """Metadata of the newest checkpoint that is not damaged, or {}."""
    for step in reversed(step_folders.steps(workdir)):
        with contextlib.suppress(checkpoint.DamagedCheckpoint):
            return checkpoint.load_metadata(str(step_folders.folder_of(workdir, step)))
    return {}
