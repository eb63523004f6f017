"""Every row of the paper's ablations is a recipe that trains."""

import importlib

import jax
import numpy as np
import pytest

from mae_jax.config.diff import flatten
from mae_jax.distributed import sharding
from mae_jax.tasks import TASKS
from mae_jax.tools.study import plan
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs
from tests.models.targets.test_tokens import save
from tests.test_configs import MODULES

FILES = [name for name in MODULES if name.startswith("configs.ablations.")]


def ablation(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", FILES)
def test_a_row_is_the_papers_recipe_but_for_what_it_changes(name):
    file = ablation(name)
    recipe = "configs.partial.vit_l" if name.endswith("partial") else "configs.vit_l"
    setting = ["ablation"] if recipe == "configs.vit_l" else []
    base = flatten(ablation(recipe).get_config(*setting))
    for row, changes in file.ROWS.items():
        expected = base | {k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()}
        assert flatten(file.get_config(row)) == expected
        if getattr(file, "KEY", ""):
            assert changes == {file.KEY: type(changes[file.KEY])(row)}
    with pytest.raises(ValueError, match="unknown row 'no': one of "):
        file.get_config("no")


@pytest.mark.parametrize("name", FILES)
def test_the_papers_numbers_are_in_the_opening_and_in_the_table(name):
    file = ablation(name)
    study = plan.load(name.replace(".", "/") + ".py")
    assert study.rows == file.ROWS and study.title
    for stage, figures in study.paper.items():
        assert stage in plan.STAGES and figures.keys() == study.rows.keys()
        for figure in figures.values():
            assert f" {figure} " in file.__doc__


def shrunk(name):
    """Tiny configurations of the rows that still differ: of numbers, the first and the last."""
    file = ablation(name)
    rows = list(file.ROWS.items())
    if getattr(file, "KEY", ""):
        rows = [rows[0], rows[-1]]
    found = {}
    for row, changes in rows:
        config = file.get_config(row)
        small = {"data.source": "shapes", "target.components": 6, "optim.warmup_epochs": 0.0}
        small = tiny_configs.CHANGES | small | changes | {"epochs": 0.0}
        if "model.patch_size" in changes:
            small["model.image_size"] = (28, 28)
        if config.task == "classify":
            small |= {
                "model.num_classes": 0,
                "init_from": "",
                "mix.group": 2,
                "trainable_blocks": 1,
            }
        known = flatten(config)
        config.update_from_flattened_dict({k: v for k, v in small.items() if k in known})
        found[config.to_json(sort_keys=True)] = (row, config)
    return list(found.values())


CELLS = [(name, row, config) for name in FILES for row, config in shrunk(name)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tokenizer") / "weights")


@pytest.mark.parametrize("name, row, config", CELLS, ids=[f"{c[0][18:]}-{c[1]}" for c in CELLS])
def test_one_step_of_every_row(name, row, config, tmp_path, tokenizer):
    if config.get("target", {}).get("kind") == "tokens":
        config.target.tokenizer = tokenizer
    task = TASKS[config.task](config, str(tmp_path))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = abstract_state(task, mesh)
    state = create_state(task, abstract)
    before = jax.device_get(state.params)
    batches = task.train_batches(0)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=1)
    state, values = step(state, sharding.to_device(mesh, next(batches)))
    batches.close()
    assert np.isfinite(values["loss"]) and values["skipped"] == 0
    assert values["grad_norm"] > 0
    same = jax.tree.map(np.array_equal, before, jax.device_get(state.params))
    assert not all(jax.tree.leaves(same))
