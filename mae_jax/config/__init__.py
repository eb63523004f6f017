"""What a config may contain: keys, rules, flags, and differences between runs. Imports no JAX."""

from typing import TYPE_CHECKING

from mae_jax.runtime import lazy

if TYPE_CHECKING:
    from mae_jax.config.diff import changes, flatten
    from mae_jax.config.validate import check_combinations, check_values

__all__ = ["changes", "check_combinations", "check_values", "flatten"]
# Lazy, because `python -m mae_jax.config.schema` must not be imported before it runs.
__getattr__, __dir__ = lazy.exports(
    __name__, diff="changes flatten", validate="check_combinations check_values"
)
