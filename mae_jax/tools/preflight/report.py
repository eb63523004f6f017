"""The results of a preflight, row by row, and whether all checks passed on every process."""

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
      name: name of the check.
      seen: the result as text.
      advice: what to do, if anything.
    """

    mark: str
    name: str
    seen: str
    advice: str = ""

    def lines(self) -> list[str]:
        """The row as printed lines."""
        advice = [f"  {'':<11} -> {self.advice}"] if self.advice else []
        return [f"{self.mark} {self.name:<11} {self.seen}", *advice]


class Report:
    """The rows so far.

    Args:
      tell: called with each row as soon as it is known.

    Attributes:
      fine: whether no check has failed on any process.
    """

    def __init__(self, tell: Callable[[Row], None]):
        self._tell = tell
        self.fine = True

    def tell(self, *rows: Row) -> None:
        """Adds rows that cannot have failed."""
        for row in rows:
            self._tell(row)

    def add(self, *rows: Row) -> bool:
        """Adds rows that each process determined itself; returns whether none failed anywhere.

        All processes must call this together.
        """
        self.tell(*rows)
        fine = not any(collectives.all_gather(any(row.mark == FAILED for row in rows)))
        self.fine = self.fine and fine
        return fine

    def add_shared(self, *rows: Row) -> bool:
        """Like `add`, for rows of work that the processes did together.

        Raises:
          RunError: the work failed here; the others may still be busy and cannot be asked.
        """
        failed = [row for row in rows if row.mark == FAILED]
        if failed and jax.process_count() > 1:
            self.tell(*rows)
            raise RunError(f"{failed[0].name}: {failed[0].seen}")
        return self.add(*rows)
