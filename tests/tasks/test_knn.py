"""Probes of features, during pre-training and of a finished encoder."""

import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.distributed import sharding
from mae_jax.ops.trees import flatten, map_with_names
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.knn import Knn
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from mae_jax.train.state import abstract_state, create_state
from tests.helpers import tiny_configs


def run(workdir, config, task):
    return loop.run(task(config, str(workdir)), config, str(workdir))


def test_a_finished_encoder_gives_what_its_own_run_reported(tmp_path):
    first = tiny_configs.config(
        steps=6, eval__knn_every=3, eval__probe_every=6, eval__train_images=50, eval__knn_k=5
    )
    run(tmp_path / "run", first, Pretrain)
    reported = {
        split: tiny_configs.metric_lines(tmp_path / "run", split) for split in ("knn", "probe")
    }
    assert [line["step"] for line in reported["knn"]] == [0, 3, 6]
    assert [line["step"] for line in reported["probe"]] == [0, 6]
    config = tiny_configs.classify_config(
        "knn",
        init_from=str(tmp_path / "run"),
        steps=0,
        eval__train_images=50,
        eval__knn_k=5,
    )
    for _ in range(2):  # the same command again measures again
        assert run(tmp_path / "knn", config, Knn)
    for split, lines in reported.items():
        (line,) = tiny_configs.metric_lines(tmp_path / "knn", split)
        assert line["count"] == 20 and line["train_count"] == 50
        assert {**line, "step": 6, "epoch": 1.0} == lines[-1]


def test_both_ways_to_encode_are_the_same_features():
    pre, knn = tiny_configs.config(), tiny_configs.classify_config("knn", init_from="", steps=0)
    ours, theirs = Pretrain(pre, ""), Knn(knn, "")
    mesh = sharding.make_mesh(**pre.mesh)
    state = create_state(ours, abstract_state(ours, mesh))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3)), jnp.uint8)
    adopted = theirs.load_pretrained(flatten(state.params), ours.metadata(0)).arrays
    params, _ = theirs.init_variables()
    params = map_with_names(params, lambda name, old: adopted.get(name, old))
    other = state.replace(params=params)
    np.testing.assert_allclose(
        ours._encode(state, images), theirs._encode(other, images), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eval__feature": "max"}, "--config.eval.feature=max is not one of"),
        ({"eval__knn_k": 97}, "--config.eval.knn_k=97 is more than the 96 training"),
        ({"data__num_eval": 0, "data__holdout": 0}, "need labeled training and held-out images"),
        ({"eval__knn_every": 0, "eval__probe_every": 0}, "nothing to measure"),
        ({"figure_every": 1}, "nothing is trained or drawn here"),
        ({"eval__train_images": -1}, "--config.eval.train_images=-1 must be an integer from 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Knn(tiny_configs.classify_config("knn", init_from="", steps=0, **changes), "")


def test_a_classifiers_encoder_can_be_measured_too(tmp_path):
    config = tiny_configs.classify_config("linprobe", init_from="", steps=1)
    run(tmp_path / "probe", config, Classify)
    config = tiny_configs.classify_config("knn", init_from=str(tmp_path / "probe"), steps=0)
    assert run(tmp_path / "knn", config, Knn)
    assert tiny_configs.metric_lines(tmp_path / "knn", "knn")[0]["count"] == 20
