"""Probes on features against plain NumPy and a known optimum."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.ops import probes


def data(n=700, d=6, classes=4):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, d))
    labels = rng.integers(classes, size=n)
    x = centers[labels] + 0.7 * rng.normal(size=(n, d))
    return x.astype(np.float32), labels


def test_knn_votes_are_those_of_plain_numpy():
    x, labels = data()
    train, queries = x[:400], x[400:]
    ours = probes.knn_scores(train, labels[:400], queries, num_classes=4, k=20)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, queries)]
    similar = unit[1] @ unit[0].T
    expected = np.zeros((300, 4))
    for row, values in enumerate(similar):
        for i in np.argsort(-values)[:20]:
            expected[row, labels[i]] += np.exp(values[i] / 0.07)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_logistic_regression_reaches_its_optimum():
    x, labels = data()
    train, answers = jnp.asarray(x[:400]), jnp.asarray(labels[:400])
    logits = probes.logistic_regression(train, answers, train, num_classes=4, l2=1e-2, steps=60)
    # The logits of the training set determine the weights; the gradient must vanish there.
    z = (train - train.mean(0)) / train.std(0)
    design = np.concatenate([z, np.ones((400, 1))], 1)
    weights, *_ = np.linalg.lstsq(design, np.asarray(logits), rcond=None)
    error = np.asarray(jax.nn.softmax(logits)) - np.eye(4)[labels[:400]]
    gradient = design.T @ error / 400 + 1e-2 * np.concatenate([weights[:-1], np.zeros((1, 4))])
    assert np.abs(gradient).max() < 1e-3
    held = probes.logistic_regression(train, answers, x[400:], num_classes=4)
    assert (np.asarray(held).argmax(1) == labels[400:]).mean() > 0.7
