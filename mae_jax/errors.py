"""The one exception for mistakes that the person running the command can mend."""


class UsageError(Exception):
    """Bad input: its text is one clear line that names the thing at fault and the way out.

    `main` and every tool print it without a traceback and exit with status 2.
    """
