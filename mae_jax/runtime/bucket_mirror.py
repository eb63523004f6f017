"""Append-only files of a workdir that may be in a bucket, where nothing can be appended.

For a bucket they are written to a local temporary folder and copied every half minute, before every
checkpoint, and at the end. Lines lost by a killed run belong to steps that are lost and rerun too.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import threading

from mae_jax.runtime import filesystem

log = logging.getLogger(__name__)

COPY_SECONDS = 30.0


class BucketMirror:
    """The folder to which append-only files of a workdir are written.

    Args:
      workdir: folder of the run.
      resumed: names of files from an earlier start that this one appends to.

    Attributes:
      folder: on a local disk; the workdir itself, unless it is in a bucket.
      copies: whether `folder` is a temporary folder whose files are copied to the workdir.
    """

    def __init__(self, workdir: str, *resumed: str):
        self._workdir, self.folder = workdir, workdir
        self.copies = filesystem.in_bucket(workdir)
        if not self.copies:
            return
        self.folder = tempfile.mkdtemp(prefix="mae_jax-")
        self._copied: dict[str, int] = {}  # name -> bytes
        for name in resumed:
            with contextlib.suppress(FileNotFoundError):
                filesystem.write(
                    os.path.join(self.folder, name), filesystem.read(f"{workdir}/{name}")
                )
        self._lock, self._closed, self._warned = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(
            target=self._copy_periodically, name="bucket mirror", daemon=True
        )
        self._thread.start()

    def copy(self) -> bool:
        """Copies what was written so far to the workdir; returns whether that succeeded.

        A failed copy is retried later and warned about once; it does not end the run.
        """
        if not self.copies:
            return True
        try:
            with self._lock:
                self._copy()
        except OSError as error:
            if not self._warned:
                log.warning("metrics cannot be copied to %s for now: %s", self._workdir, error)
            self._warned = True
            return False
        return True

    def close(self) -> None:
        """Copies one last time; what could not be copied stays on the local disk."""
        if not self.copies:
            return
        self._closed.set()
        self._thread.join()
        if self.copy():
            shutil.rmtree(self.folder)
        else:
            log.warning(
                "metrics could not be copied to %s; they stay in %s", self._workdir, self.folder
            )

    def _copy_periodically(self) -> None:
        while not self._closed.wait(COPY_SECONDS):
            self.copy()

    def _copy(self) -> None:
        """Copies the files that have grown."""
        for folder, _, names in os.walk(self.folder):
            for path in (os.path.join(folder, name) for name in names):
                with open(path, "rb") as file:
                    content = file.read()
                name = os.path.relpath(path, self.folder)
                if self._copied.get(name) != len(content):
                    filesystem.write(f"{self._workdir}/{name}", content)
                    self._copied[name] = len(content)
