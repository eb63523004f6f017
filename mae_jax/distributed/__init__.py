"""Processes and devices: start, mesh and shardings, collectives, consistency, fail-fast."""

from typing import TYPE_CHECKING

from mae_jax.runtime import lazy

if TYPE_CHECKING:
    from mae_jax.distributed.collectives import run_on_primary
    from mae_jax.distributed.consistency import check_consistency
    from mae_jax.distributed.sharding import make_mesh

__all__ = ["check_consistency", "make_mesh", "run_on_primary"]
__getattr__, __dir__ = lazy.exports(
    __name__,
    collectives="run_on_primary",
    consistency="check_consistency",
    sharding="make_mesh",
)
