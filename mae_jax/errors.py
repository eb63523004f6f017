"""The exceptions whose text is all that a person needs: no traceback is shown."""


class UsageError(Exception):
    """Bad input: its text is one clear line that names the thing at fault and the way out.

    `main` and every tool print it without a traceback and exit with status 2.
    """


class DataMissing(UsageError):
    """Data that are not where they should be; storage that is away looks the same."""


class RunError(Exception):
    """A run that cannot go on: what happened, what is safe and what to do. Exit status 1."""


class StorageUnavailable(RunError):
    """Data that cannot be read now, and may be readable later. Exit status 75."""
