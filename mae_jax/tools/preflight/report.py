"""The results of a preflight, row by row, and whether every process passed."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mae_jax.distributed import collectives
from mae_jax.runtime.errors import RunError

OK, WARNING, FAILED = "✓", "!", "✗"


class Row(NamedTuple):
    """The result of one check.

    Attributes:
      mark: OK, WARNING or FAILED.
      name: of the check.
      result: what was measured, or what went wrong.
      advice: what to do about it, if anything.
    """

    mark: str
    name: str
    result: str
    advice: str = ""

    def lines(self) -> list[str]:
        """Human-readable lines."""
        advice = [f"  {'':<11} -> {self.advice}"] if self.advice else []
        return [f"{self.mark} {self.name:<11} {self.result}", *advice]


class Report:
    """Collects rows and shares failures between processes.

    Args:
      show: called with each row as soon as it is known.

    Attributes:
      passed: whether no check has failed so far, on any process.
    """

    def __init__(self, show: Callable[[Row], None]):
        self._show = show
        self.passed = True

    def show(self, *rows: Row) -> None:
        """Shows rows that cannot have failed, without asking other processes."""
        for row in rows:
            self._show(row)

    def add(self, *rows: Row) -> bool:
        """Adds rows of independent checks; returns whether they passed on every process.

        All processes must call this together.
        """
        self.show(*rows)
        passed = not any(collectives.all_gather(any(row.mark == FAILED for row in rows)))
        self.passed = self.passed and passed
        return passed

    def add_shared(self, *rows: Row) -> bool:
        """Like `add`, for checks in which the processes depend on each other.

        Raises:
          RunError: a check failed here; other processes may hang in it, so they cannot be asked.
        """
        failed = [row for row in rows if row.mark == FAILED]
        if failed and jax.process_count() > 1:
            self.show(*rows)
            raise RunError(f"{failed[0].name}: {failed[0].result}")
        return self.add(*rows)
