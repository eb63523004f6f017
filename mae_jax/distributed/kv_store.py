"""Texts by name that all processes of a run see, also before and while nothing else works.

They lie in jax's coordination service, which process 0 has. It is reached through `jax._src`, as
Orbax does, since it has no public name.
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
    """Texts by name that all processes see."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str, *, until: float, who: str) -> str:
        """Waits for a text until the monotonic clock says `until`; UsageError names `who`."""
        ...


class KVStore:
    """The store of jax's coordination service.

    Args:
      name: keeps its keys apart from those of others.
    """

    SLICE = 5.0  # seconds of waiting in one go: Ctrl-C works only in between
    PATIENCE = 60.0  # seconds before the log says who is waited for
    GATHER = 600.0  # seconds for the slowest process

    def __init__(self, name: str) -> None:
        from jax._src import distributed  # no public name; see the module's docstring

        self._client: Any = distributed.global_state.client
        self._folder = f"mae_jax/{name}/"

    def set(self, key: str, value: str) -> None:
        self._client.key_value_set(self._folder + key, value, allow_overwrite=True)

    def all(self) -> dict[str, str]:
        """What is there now, by key."""
        found = self._client.key_value_dir_get(self._folder)
        return {key.removeprefix(self._folder): value for key, value in found}

    def gather(self, value: str) -> list[str]:
        """The values of all processes; called once by each, and returns when all have done so."""
        self.set(secrets.token_hex(8), value)
        self._client.wait_at_barrier(f"{self._folder}gathered", round(1000 * self.GATHER))
        return list(self.all().values())

    def get(self, key: str, *, until: float, who: str) -> str:
        say_at = time.monotonic() + self.PATIENCE
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
                raise UsageError(
                    f"{who} did not come to the start in time: see what it printed last"
                )
            if now >= say_at:
                log.info("waiting for %s", who)
                say_at = math.inf
