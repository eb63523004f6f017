"""Ways to use the training loop, by the name that `config.task` gives."""

from mae_jax.tasks.classify import Classify
from mae_jax.tasks.knn import Knn
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tasks.tokenizer import Tokenizer

TASKS = {"pretrain": Pretrain, "classify": Classify, "knn": Knn, "tokenizer": Tokenizer}
