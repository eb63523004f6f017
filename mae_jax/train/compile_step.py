"""Compiles the train step ahead of time, without data or a state, to learn what it needs."""

from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError, one_line
from mae_jax.train.state import abstract_state
from mae_jax.train.step import make_train_step


class StepDoesNotFit(UsageError):
    """The compiler found no plan within the memory of a device."""


def planned_bytes(compiled: Any) -> int:
    """Bytes on one device while a compiled step runs, according to the compiler's plan.

    Results that reuse the memory of an argument, such as the donated state, count once.
    """
    plan = compiled.memory_analysis()
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + results


def abstract_batch(task: Any, batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a global batch."""
    where = sharding.batch_sharding(mesh)
    fields = {name: (field.shape, field.dtype) for name, field in task.data.fields.items()}
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=where)
        for name, (shape, dtype) in (fields | {"index": ((), "int32")}).items()
    }


def compile_step(config: Any, task: Any, mesh: Mesh) -> Any:
    """The compiled train step of a configuration.

    Raises:
      UsageError: the batch size is not divisible.
      StepDoesNotFit: the step does not fit into memory.
    """
    rows = mesh.size * config.grad_accum
    if config.batch_size % rows:
        raise UsageError(
            f"--config.batch_size={config.batch_size} is not divisible by {mesh.size} devices x "
            f"grad_accum {config.grad_accum} = {rows}"
        )
    abstract = abstract_state(task, mesh)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=config.grad_accum)
    lowered = step.lower(abstract, abstract_batch(task, config.batch_size, mesh))
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise StepDoesNotFit(
            f"the step does not fit: {one_line(error)} (raise "
            "--config.mesh.fsdp or --config.grad_accum, or set --config.model.remat=blocks)"
        ) from error
