"""The lock of a workdir in a bucket, where files can be neither locked nor touched.

Instead, the file is rewritten every minute. If two runs start at the same moment, the last to write
the file wins and the other exits: reads from a bucket always see the latest write.
"""

import json
import logging
import time

from mae_jax.runtime import filesystem, workdir_lock
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.workdir_lock import STALE_SECONDS, Lock, Owner

log = logging.getLogger(__name__)

SETTLE_SECONDS = 3.0  # by then, any other start that saw no lock either has written its own


class BucketLock(Lock):
    """The lock of a workdir, held until `release`.

    Raises:
      UsageError: another run holds it.
      OSError: the workdir is not writable.
    """

    def _acquire(self) -> None:
        owner = self._read()
        if owner is not None:
            if self._is_alive(owner):
                raise UsageError(workdir_lock.in_use(self._workdir, self._path, owner))
            who = workdir_lock.describe(owner)
            log.warning("%s is left over from %s: taken over", self._path, who)
        self._renew()
        time.sleep(SETTLE_SECONDS)
        owner = self._read()
        if owner != self._mine:
            raise UsageError(workdir_lock.in_use(self._workdir, self._path, owner or {}))

    def _is_alive(self, owner: Owner) -> bool:
        """Whether the lock's owner is alive: its process exists or it keeps renewing the lock."""
        alive = workdir_lock.is_alive(owner)
        if alive is not None:
            return alive
        try:
            return workdir_lock.is_renewed(
                lambda: filesystem.written_at(self._path),
                filesystem.probe(self._workdir),
                stale=STALE_SECONDS,
                path=self._path,
                who=workdir_lock.describe(owner),
            )
        except FileNotFoundError:  # released
            return False

    def _open_folder(self) -> None:
        return None  # a bucket has no folders

    def _restore(self) -> bool:
        if not filesystem.exists(self._workdir):
            return False
        self._renew()
        log.warning("%s was removed: created again", self._path)
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
