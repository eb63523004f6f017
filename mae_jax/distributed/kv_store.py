"""A key-value store of strings that all processes of a run share, independent of the devices.

It is part of jax's coordination service, which runs in process 0. Like Orbax, this module uses
`jax._src`, since the service has no public API.
"""

import logging
import math
import secrets
import time
from typing import Any, Protocol

import jax

from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)


class Store(Protocol):
    """Strings by key, visible to all processes."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str, *, until: float, who: str) -> str:
        """Waits for a value until the monotonic time `until`.

        Raises:
          UsageError: there was none; names `who`, the process that should have set it.
        """
        ...


class KVStore:
    """The store of jax's coordination service.

    Args:
      name: prefix of all its keys.
    """

    SLICE = 5.0  # seconds per blocking call; Ctrl-C works only in between
    PATIENCE = 60.0  # seconds until the log says which process is missing
    GATHER = 600.0  # seconds to wait for the slowest process

    def __init__(self, name: str) -> None:
        from jax._src import distributed  # no public API; see the module's docstring

        self._client: Any = distributed.global_state.client
        self._folder = f"mae_jax/{name}/"

    def set(self, key: str, value: str) -> None:
        self._client.key_value_set(self._folder + key, value, allow_overwrite=True)

    def all(self) -> dict[str, str]:
        """The current values, by key."""
        found = self._client.key_value_dir_get(self._folder)
        return {key.removeprefix(self._folder): value for key, value in found}

    def gather(self, value: str) -> list[str]:
        """The values of all processes; each calls this once, and it returns when all have."""
        self.set(secrets.token_hex(8), value)
        self._client.wait_at_barrier(f"{self._folder}gathered", round(1000 * self.GATHER))
        return list(self.all().values())

    def get(self, key: str, *, until: float, who: str) -> str:
        log_at = time.monotonic() + self.PATIENCE
        while True:
            left = max(until - time.monotonic(), 0.001)
            milliseconds = round(1000 * min(left, self.SLICE))
            try:
                return self._client.blocking_key_value_get(self._folder + key, milliseconds)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            now = time.monotonic()
            if now >= until:
                raise UsageError(f"{who} did not start in time; see its log")
            if now >= log_at:
                log.info("waiting for %s", who)
                log_at = math.inf
