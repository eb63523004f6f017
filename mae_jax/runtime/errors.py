"""Exceptions that are shown to the user without a traceback, and exit statuses."""

from collections.abc import Callable

# Exit statuses.
FAILED = 1  # the run cannot continue
USAGE = 2  # bad input
HUNG = 70  # ended by the watchdog; run the same command again (EX_SOFTWARE)
STOPPED = 75  # saved, or nothing to save; run the same command again to continue (EX_TEMPFAIL)
INTERRUPTED = 130  # Ctrl-C in a tool: 128 + SIGINT


class UsageError(Exception):
    """Bad input: one line for each problem, which says what is wrong and how to fix it.

    `main` and every tool print it without a traceback and exit with status 2.
    """

    def __str__(self) -> str:
        problems = list(map(str, self.args))
        if len(problems) < 2:
            return "".join(problems)
        return "\n  - ".join([f"{len(problems)} problems", *problems])


def all_of(*checks: Callable[[], object]) -> None:
    """Runs every check, so that all problems are reported at once.

    Raises:
      UsageError: the problems of all checks that failed.
    """
    problems: list[object] = []
    for check in checks:
        try:
            check()
        except UsageError as error:
            problems += error.args
    if problems:
        raise UsageError(*problems)


def one_line(error: object) -> str:
    """The text of an error, or any other text, on one line of at most 300 characters.

    Long messages name the type of error first and its cause last: the middle is left out.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}"


def first_line(error: BaseException) -> str:
    """The first line of an error whose other lines are details, such as XLA's memory reports."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def exit_status(error: BaseException) -> int:
    """The exit status of a command that raises `error`."""
    if isinstance(error, StorageUnavailable):
        return STOPPED
    return USAGE if isinstance(error, UsageError) else FAILED


class DataMissing(UsageError):
    """Data that do not exist; unavailable storage looks the same."""


class RunError(Exception):
    """A run that cannot continue: what happened, what is safe, what to do. Exit status 1."""


class StorageUnavailable(RunError):
    """Data that cannot be read now but may be readable later. Exit status 75."""


def require(condition: bool, message: str) -> None:
    """Raises UsageError(message) unless `condition` is true."""
    if not condition:
        raise UsageError(message)
