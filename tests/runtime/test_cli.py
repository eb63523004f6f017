"""Exit status and messages of commands whose streams are closed, full, or not Unicode."""

import os
import subprocess
import sys

import pytest

from tests.helpers.processes import REPO

PROGRAM = r"""
import errno, logging, os, sys
from mae_jax.runtime import cli
from mae_jax.runtime.errors import RunError
from mae_jax.runtime.errors import UsageError

def command():
    cli.setup_logging()
    logging.getLogger("mae_jax").info("begins \xfc")
    print("resum\xe9 \u2713")
    {body}
    return 0

sys.exit(cli.run_command(command))
"""
ENDS = [
    ("pass", 0, ""),
    (r"raise UsageError('bad \xfc')", 2, "error: bad"),
    ("raise RunError('failed')", 1, "error: failed"),
    ("raise OSError(errno.EIO, os.strerror(errno.EIO), '/a')", 1, "error: /a: Input/output error"),
    ("raise KeyboardInterrupt", 130, "interrupted"),
]


def run(body, redirect="", **environment):
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, PROGRAM.format(body=body)],
        env=os.environ | {"PYTHONPATH": REPO} | environment,
        capture_output=True,
    )


@pytest.mark.parametrize("body, status, said", ENDS)
@pytest.mark.parametrize("redirect", ["", "2>/dev/full", "2>&- >&- <&-"])
def test_the_status_does_not_depend_on_where_messages_go(body, status, said, redirect):
    done = run(body, redirect)
    assert done.returncode == status
    if not redirect:
        assert said in done.stderr.decode() and b"Traceback" not in done.stderr
        assert done.stdout.decode() == "resumé ✓\n"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("more", [{}, {"PYTHONIOENCODING": "ascii"}])
def test_what_the_terminal_cannot_show_is_escaped(more):
    done = run(r"raise UsageError('bad \xfc')", **ASCII, **more)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"error: bad \\xfc" in done.stderr and done.stdout == b"resum\\xe9 \\u2713\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_that_cannot_be_printed_are_an_error(unbuffered):
    done = run("pass", ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[1:] == ["error: [Errno 28] No space left on device"]


def test_a_closed_stream_is_not_taken_for_the_next_file(tmp_path):
    body = f"file = open({str(tmp_path / 'a')!r}, 'w'); os.write(2, b'message'); file.write('text')"
    assert run(body, "2>&-").returncode == 0
    assert (tmp_path / "a").read_text() == "text"
