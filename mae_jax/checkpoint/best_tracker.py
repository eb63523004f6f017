"""Keeps track of the best checkpoint of a run while it trains."""

import logging
from collections.abc import Iterable

from mae_jax.checkpoint import best, layout, reader
from mae_jax.checkpoint.best import Best
from mae_jax.runtime import disk
from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)
METRICS = "metrics"  # key of a checkpoint's metadata: values by `split/name` after that step


class BestTracker:
    """The best checkpoint of a run; used on process 0.

    `best.json` only names steps that are saved and intact: it is written after a checkpoint has
    been read back. If the process is killed before, `recover` finds the value in the metadata of
    the checkpoint.

    Args:
      run: folder of the run.
      metric: `split/name` of the metric; "" tracks none but still protects a recorded step.

    Attributes:
      pending: the step that is being saved, if it is evaluated.
    """

    def __init__(self, run: str, metric: str):
        self.run, self.metric = run, metric
        self.pending: Best | None = None
        self._best: Best | None = None
        self._recorded: Best | None = None  # in the file; differs if it could not be written

    def recover(self) -> None:
        """Determines the best of the saved steps, and records it if it is not recorded yet."""
        saved = layout.steps(self.run)
        self._recorded = best.read(self.run)
        valid = self._recorded if self._recorded and self._recorded.step in saved else None
        if not self.metric:
            self._best = valid
            return
        same = [valid] if valid and valid.metric == self.metric else []
        self._best = _first_best([*same, *map(self._saved_candidate, saved)])
        if valid and valid.metric != self.metric:
            log.info(
                "the best checkpoint was chosen by %s and is now chosen by %s: %s",
                *(valid.metric, self.metric, self._best or "no saved step has it"),
            )
        self._record()

    def is_better(self, candidate: Best) -> bool:
        """Whether a step beats the best saved one, and the one that is being saved."""
        return candidate.beats(self._best) and candidate.beats(self.pending)

    def add(self, candidate: Best | None) -> None:
        """Records a step that is saved and intact if it is the best one; None for no value."""
        if candidate and candidate.beats(self._best):
            self._best = candidate
        self._record()

    def protected(self) -> set[int]:
        """Steps that must not be deleted."""
        return {entry.step for entry in (self._best, self._recorded) if entry}

    def _saved_candidate(self, step: int) -> Best | None:
        path = layout.CheckpointPath(str(layout.folder_of(self.run, step)), self.run, step)
        try:
            return best.candidate(self.metric, step, reader.read_metadata(path)[0].get(METRICS, {}))
        except UsageError:  # damaged
            return None

    def _record(self) -> None:
        """Writes the file if it is out of date; retried with the next checkpoint if it fails."""
        if not self.metric or self._best == self._recorded:
            return
        try:
            best.write(self.run, self._best)
            self._recorded = self._best
        except OSError as error:
            log.warning("the best step is not recorded: %s", disk.error_line(error, self.run))


def _first_best(candidates: Iterable[Best | None]) -> Best | None:
    found = None
    for candidate in candidates:
        if candidate and candidate.beats(found):
            found = candidate
    return found
