"""What can be trained or evaluated, by the value of `config.task`."""

from mae_jax.tasks.classify import Classify
from mae_jax.tasks.detect import Detect
from mae_jax.tasks.knn import Knn
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tasks.tokenizer import Tokenizer

__all__ = ["TASKS"]

TASKS = {
    "pretrain": Pretrain,
    "classify": Classify,
    "detect": Detect,
    "knn": Knn,
    "tokenizer": Tokenizer,
}
