"""The exceptions whose text is all that a person needs: no traceback is shown."""


class UsageError(Exception):
    """Bad input: its text is one clear line that names the thing at fault and the way out.

    `main` and every tool print it without a traceback and exit with status 2.
    """


def exit_status(error: BaseException) -> int:
    """Of a command that ends with this exception."""
    return 2 if isinstance(error, UsageError) else 1


class RunError(Exception):
    """A run that cannot go on: what happened, what is safe and what to do. Exit status 1."""
