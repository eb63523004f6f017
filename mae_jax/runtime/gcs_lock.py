"""The lock of a workdir in a bucket: `lock` for where a file can neither be locked nor touched.

The file is written anew every minute instead. Of two runs that start at the same moment the one
that wrote last stays, and the other ends: in a bucket whoever reads after a write sees it.
"""

import json
import logging
import time

from mae_jax.runtime import filesystem, workdir_lock
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.workdir_lock import STALE_SECONDS, Lock, Owner

log = logging.getLogger(__name__)

SETTLE_SECONDS = 3.0  # within which another start that saw no lock either has written its own


class BucketLock(Lock):
    """The lock of one workdir, held until `release`.

    Raises:
      UsageError: another run holds it.
      OSError: nothing can be written there.
    """

    def _acquire(self) -> None:
        held = self._read()
        if held is not None:
            if self._is_alive(held):
                raise UsageError(workdir_lock.in_use(self._workdir, self._path, held))
            who = workdir_lock.describe(held)
            log.warning("%s is left over from %s: taken over", self._path, who)
        self._renew()
        time.sleep(SETTLE_SECONDS)
        held = self._read()
        if held != self._mine:
            raise UsageError(workdir_lock.in_use(self._workdir, self._path, held or {}))

    def _is_alive(self, held: Owner) -> bool:
        """Whether a lock's run is at work: its process is there, or its lock is written anew."""
        alive = workdir_lock.is_alive(held)
        if alive is not None:
            return alive
        try:
            return workdir_lock.is_renewed(
                lambda: filesystem.written_at(self._path),
                filesystem.probe(self._workdir),
                stale=STALE_SECONDS,
                path=self._path,
                who=workdir_lock.describe(held),
            )
        except FileNotFoundError:  # given back meanwhile
            return False

    def _open_folder(self) -> None:
        return None  # there are none in a bucket

    def _put_back(self) -> bool:
        if not filesystem.exists(self._workdir):
            return False
        self._renew()
        log.warning("%s was removed: made again", self._path)
        return True

    def _renew(self) -> None:
        filesystem.write(self._path, json.dumps(self._mine, indent=2).encode())

    def _read(self) -> Owner | None:
        try:
            return workdir_lock.parse(filesystem.read(self._path)) or {}
        except FileNotFoundError:
            return None

    def _remove(self) -> None:
        filesystem.remove(self._path)
