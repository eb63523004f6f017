"""The loop, the step, the state, and what they need."""

from typing import TYPE_CHECKING

from mae_jax.runtime import lazy

if TYPE_CHECKING:
    from mae_jax.train.loop import run
    from mae_jax.train.state import TrainState
    from mae_jax.train.step import make_train_step
    from mae_jax.train.task import Evaluator, Task

__all__ = ["Evaluator", "Task", "TrainState", "make_train_step", "run"]
__getattr__, __dir__ = lazy.exports(
    __name__, loop="run", state="TrainState", step="make_train_step", task="Evaluator Task"
)
