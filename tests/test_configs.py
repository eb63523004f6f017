"""Every recipe can be imported, built and traced; those of the paper say what the paper says."""

import glob
import importlib
import os

import jax
import jax.numpy as jnp
import pytest

from mae_jax import sharding
from mae_jax.state import abstract_state
from mae_jax.tasks import TASKS
from mae_jax.train_step import make_train_step

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = sorted(glob.glob(os.path.join(REPO, "configs", "**", "*.py"), recursive=True))
MODULES = [os.path.relpath(f, REPO)[:-3].replace(os.sep, ".") for f in FILES]


def load(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_recipe_builds_and_its_step_traces(name, tmp_path):
    config = load(name).get_config()
    config.data.source = "shapes"  # the real data need not be here
    task = TASKS[config.task](config, str(tmp_path))
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=config.grad_accum)
    shape = (config.batch_size, *task.model.image_size, config.model.channels)
    batch = {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}
    state, values = jax.eval_shape(step, abstract, batch)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, abstract)
    assert values["loss"].shape == () and values["loss"].dtype == jnp.float32
    assert task.num_steps > 0 and task.facts()


@pytest.mark.parametrize("name", MODULES)
def test_recipe_opens_with_its_command_hardware_and_expectation(name):
    text = load(name).__doc__
    path = name.replace(".", "/") + ".py"
    assert f"--config={path}" in text
    for word in ("Hardware", "Cost", "Expect"):
        assert word in text, f"{path} does not say: {word}"


@pytest.mark.parametrize(
    "name, size, patch", [("vit_b", "B", 16), ("vit_l", "L", 16), ("vit_h", "H", 14)]
)
def test_paper_recipes_are_table_8(name, size, patch):
    config = load(f"configs.{name}").get_config()
    assert (config.model.size, tuple(config.model.patch_size)) == (size, (patch, patch))
    assert (config.epochs, config.batch_size, config.optim.warmup_epochs) == (1600, 4096, 40)
    optim = config.optim
    assert (optim.base_lr, optim.weight_decay, optim.b1, optim.b2) == (1.5e-4, 0.05, 0.9, 0.95)
    assert (optim.min_lr, optim.grad_clip, config.mask.ratio) == (0, 0, 0.75)
    assert config.target.normalize
    model = config.model
    decoder = (model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads)
    assert decoder == (512, 8, 16)
    data = config.data
    assert tuple(data.crop_scale) == (0.2, 1.0) and tuple(data.crop_ratio) == (3 / 4, 4 / 3)
    assert data.hflip and data.name == "imagenet2012"
    ablation = load(f"configs.{name}").get_config("ablation")
    assert ablation.epochs == 800 and not ablation.target.normalize
    ablation.epochs, ablation.target.normalize = 1600.0, True
    assert ablation.to_dict() == config.to_dict()
