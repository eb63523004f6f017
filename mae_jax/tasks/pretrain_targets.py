"""Builds the prediction target of a configuration, and finds its tokenizer."""

import contextlib
import logging
from typing import Any

from mae_jax.checkpoint import layout, reader
from mae_jax.convert import tokenizer
from mae_jax.models import targets
from mae_jax.models.factory import compute_dtype
from mae_jax.models.targets import PatchSpec, Target
from mae_jax.runtime.errors import require

log = logging.getLogger(__name__)


def make_target(config: Any, spec: PatchSpec, workdir: str) -> Target:
    """Builds the target of `config.target.kind`.

    Args:
      config: the whole configuration.
      spec: how images are patchified and normalized.
      workdir: folder of the run, whose checkpoints contain its tokenizer; "" for none.

    Raises:
      UsageError: there is no such target, or it does not work with the configuration.
    """
    return targets.find(config.target.kind).from_config(
        spec,
        config,
        dtype=compute_dtype(config.model.dtype),
        load_tokenizer=lambda: find_tokenizer(config, workdir),
    )


def find_tokenizer(config: Any, workdir: str) -> tokenizer.Tokenizer:
    """The tokenizer of the checkpoint that a run continues, or else `config.target.tokenizer`.

    If a checkpoint will be restored, only the shapes of the tokenizer's arrays are returned.

    Raises:
      UsageError: there is none, or it is corrupt, incomplete or not a tokenizer.
    """
    if saved := _saved_tokenizer(config, workdir):
        return tokenizer.from_metadata(saved)
    require(
        config.target.tokenizer != "",
        "--config.target.kind=tokens needs --config.target.tokenizer: a run of "
        "configs/tokenizer.py, or DALL-E's encoder.pkl (docs/pretraining.md)",
    )
    loaded = tokenizer.load(config.target.tokenizer)
    log.info("tokenizer %s: sha256 %s", config.target.tokenizer, loaded.sha256)
    return loaded


def _saved_tokenizer(config: Any, workdir: str) -> dict[str, Any] | None:
    """Metadata of the tokenizer in the checkpoint that a run will continue."""
    metadata: dict[str, Any] = {}
    if workdir and layout.exists(workdir):
        metadata = _newest_metadata(workdir)
    elif config.resume:
        metadata = reader.resolve_and_read(config.resume, reader.load_metadata)
    target = metadata.get("target", {})
    return target["tokenizer"] if target.get("kind") == "tokens" else None


def _newest_metadata(workdir: str) -> dict[str, Any]:
    """Metadata of the newest checkpoint that is not corrupt, or {}."""
    for step in reversed(layout.steps(workdir)):
        with contextlib.suppress(reader.CorruptCheckpointError):
            return reader.load_metadata(str(layout.folder_of(workdir, step)))
    return {}
