"""Files that grow, of a workdir that may lie in a bucket, where nothing can be appended.

There they grow in a temporary folder and are copied every half minute, before every checkpoint and
at the end: with what a killed run loses of them it loses the steps, too, and does them again.
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
    """Where the growing files of a workdir are written.

    Args:
      workdir: folder of the run.
      kept: names of those that an earlier start began and this one goes on with.

    Attributes:
      folder: on a disk; the workdir itself, unless it is in a bucket.
      copies: whether it is another, and its files are copied whenever they have grown.
    """

    def __init__(self, workdir: str, *kept: str):
        self._workdir, self.folder = workdir, workdir
        self.copies = filesystem.in_bucket(workdir)
        if not self.copies:
            return
        self.folder = tempfile.mkdtemp(prefix="mae_jax-")
        self._copied: dict[str, int] = {}  # name -> bytes
        for name in kept:
            with contextlib.suppress(FileNotFoundError):
                filesystem.write(
                    os.path.join(self.folder, name), filesystem.read(f"{workdir}/{name}")
                )
        self._lock, self._closed, self._told = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._copy_always, name="growing files", daemon=True)
        self._thread.start()

    def copy(self) -> bool:
        """Brings what was written so far to where the next start finds it; whether it is there.

        What cannot be copied now is copied later, and told once: it ends no run.
        """
        if not self.copies:
            return True
        try:
            with self._lock:
                self._copy()
        except OSError as error:
            if not self._told:
                log.warning("metrics cannot be copied to %s for now: %s", self._workdir, error)
            self._told = True
            return False
        return True

    def close(self) -> None:
        """Copies for the last time; what could not be copied stays on the disk."""
        if not self.copies:
            return
        self._closed.set()
        self._thread.join()
        if self.copy():
            shutil.rmtree(self.folder)
        else:
            log.warning("metrics that are not in %s stay in %s", self._workdir, self.folder)

    def _copy_always(self) -> None:
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
