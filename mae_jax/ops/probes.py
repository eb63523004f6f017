"""Classifiers on precomputed features: kNN and logistic regression."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# At lower precision, rounding on accelerators would reorder neighbors.
EXACT = jax.lax.Precision.HIGHEST
QUERY_BATCH = 256  # bounds the memory of the similarity matrix


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def knn_scores(
    train: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> jax.Array:
    """Class scores by votes of the k nearest examples in cosine similarity.

    A vote has the weight exp(cosine / temperature).

    Args:
      train: features [N, D].
      labels: int [N].
      queries: features [Q, D].
      num_classes: C.
      k: number of neighbors, at most N.
      temperature: of the weights.

    Returns:
      float32 [Q, C].

    Reference: Wu et al. (1805.01978), as used by DINO (2104.14294): k 20, temperature 0.07.
    """
    train, labels = _unit(train), jnp.asarray(labels)
    queries = _unit(queries)

    def votes(query: jax.Array) -> jax.Array:
        similar, nearest = jax.lax.top_k(jnp.matmul(train, query, precision=EXACT), k)
        weights = jnp.exp(similar / temperature)
        return jnp.zeros(num_classes).at[labels[nearest]].add(weights)

    return jax.lax.map(votes, queries, batch_size=QUERY_BATCH)


def logistic_regression(
    train: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    *,
    num_classes: int,
    l2: float = 1e-4,
    steps: int = 100,
) -> jax.Array:
    """Logits of a linear classifier fitted by L-BFGS from zero; deterministic.

    Features are standardized by the statistics of the training examples. Minimizes the mean
    cross-entropy + l2 / 2 * |weights|^2.

    Args:
      train: features [N, D].
      labels: int [N].
      queries: features [Q, D].
      num_classes: C.
      l2: penalty on the weights; the bias is not penalized.
      steps: L-BFGS iterations.

    Returns:
      float32 [Q, C].
    """
    mean, std = train.mean(axis=0), jnp.maximum(train.std(axis=0), 1e-6)
    x = (train - mean) / std

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return jnp.matmul(x, params[0], precision=EXACT) + params[1]

    def loss(params: Any) -> jax.Array:
        errors = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), labels)
        return errors.mean() + 0.5 * l2 * jnp.square(params[0]).sum()

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), None

    zeros = jnp.zeros((train.shape[1], num_classes)), jnp.zeros(num_classes)
    (params, _), _ = jax.lax.scan(step, (zeros, optimizer.init(zeros)), length=steps)
    return logits(params, (queries - mean) / std)
