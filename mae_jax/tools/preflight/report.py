"""What a preflight has found, row by row, and whether it is well on every process."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mae_jax.distributed import collectives
from mae_jax.runtime.errors import RunError

OK, WARNING, FAILED = "✓", "!", "✗"


class Row(NamedTuple):
    """One thing that was looked at.

    Attributes:
      mark: OK, WARNING or FAILED.
      name: of what.
      seen: what was found.
      advice: what to do, where something is to be done.
    """

    mark: str
    name: str
    seen: str
    advice: str = ""

    def lines(self) -> list[str]:
        """As a person reads it."""
        advice = [f"  {'':<11} -> {self.advice}"] if self.advice else []
        return [f"{self.mark} {self.name:<11} {self.seen}", *advice]


class Report:
    """The rows so far.

    Args:
      tell: gets a row as soon as it is known.

    Attributes:
      fine: whether nothing has failed, on any process.
    """

    def __init__(self, tell: Callable[[Row], None]):
        self._tell = tell
        self.fine = True

    def tell(self, *rows: Row) -> None:
        """Adds rows that cannot have failed."""
        for row in rows:
            self._tell(row)

    def add(self, *rows: Row) -> bool:
        """Adds rows that each process found for itself; whether none failed on any of them.

        All processes must call this together.
        """
        self.tell(*rows)
        fine = not any(collectives.all_gather(any(row.mark == FAILED for row in rows)))
        self.fine = self.fine and fine
        return fine

    def add_shared(self, *rows: Row) -> bool:
        """The same of what the processes did together.

        Raises:
          RunError: it failed here, where the others may still be at it and cannot be asked.
        """
        failed = [row for row in rows if row.mark == FAILED]
        if failed and jax.process_count() > 1:
            self.tell(*rows)
            raise RunError(f"{failed[0].name}: {failed[0].seen}")
        return self.add(*rows)
