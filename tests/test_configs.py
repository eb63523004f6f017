"""Every recipe can be imported, built and traced; those of the paper match the paper."""

import glob
import importlib
import os

import jax
import jax.numpy as jnp
import pytest

from mae_jax.config.schema import INHERIT
from mae_jax.distributed import sharding
from mae_jax.optim.schedules import absolute_lr
from mae_jax.tasks import TASKS
from mae_jax.train.state import abstract_state
from mae_jax.train.step import make_train_step
from tests.helpers.processes import REPO
from tests.parity.official import path as parity_file

RECIPES = glob.glob(os.path.join(REPO, "configs", "**", "*.py"), recursive=True)
NOT_RECIPES = ("configs/common.py", "configs/ablations/rows.py")
FILES = sorted(f for f in RECIPES if not f.endswith(NOT_RECIPES))
MODULES = [os.path.relpath(f, REPO)[:-3].replace(os.sep, ".") for f in FILES]

# Their steps differ from that of vitdet_b in numbers only, and take seconds to trace.
LIKE_VITDET_B = {f"configs.detection.{name}" for name in ("vitdet_l", "vitdet_h", "demo", "folder")}


def load(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_recipe_builds_and_its_step_traces(name, tmp_path):
    config = load(name).get_config()
    config.data.source = "shapes"  # instead of the real data
    # Blocks are identical, and each takes time to trace.
    config.model.depth = config.model.depth or 4
    if "decoder_depth" in config.model:
        config.model.decoder_depth = min(config.model.decoder_depth, 2)
    if config.model.get("num_classes"):
        config.model.num_classes = 12
    inherits = config.model.size == INHERIT
    config.init_from = parity_file("hf_tiny_v4names") if inherits else ""
    task = TASKS[config.task](config, str(tmp_path))
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    assert task.summary()
    if task.num_steps == 0 or name in LIKE_VITDET_B:
        return
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=config.grad_accum)
    rows = {name: (field.shape, field.dtype) for name, field in task.data.fields.items()}
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        for name, (shape, dtype) in (rows | {"index": ((), jnp.int32)}).items()
    }
    state, values = jax.eval_shape(step, abstract, batch)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, abstract)
    assert values["loss"].shape == () and values["loss"].dtype == jnp.float32
    assert task.num_steps > 0 or config.task == "knn"


@pytest.mark.parametrize("name", MODULES)
def test_recipe_opens_with_its_command_hardware_and_expectation(name):
    text = load(name).__doc__
    path = name.replace(".", "/") + ".py"
    assert f"--config={path}" in text
    assert "@" not in text
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


def test_table_2_is_the_ablation_recipe_and_its_three_models():
    module, base = load("configs.ablations.wall_clock"), load("configs.vit_l")
    assert module.get_config().to_dict() == base.get_config("ablation").to_dict()
    found = [module.get_config(row).model for row in module.ROWS]
    assert [(m.encoder_mask_tokens, m.decoder_depth) for m in found] == [
        (True, 8), (False, 8), (False, 1)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown row 'x': one of mask_tokens_8, mae_8, mae_1"):
        module.get_config("x")


def official(config):
    """The settings in the tables of the paper and of the official code, in their order."""
    optim, mix, model = config.optim, config.mix, config.model
    return (
        (model.size, model.patch_size[0], config.epochs, config.batch_size, config.trainable),
        (optim.name, optim.base_lr, optim.min_lr, optim.warmup_epochs, optim.weight_decay),
        (optim.b1, optim.b2, optim.layer_decay, optim.ema, optim.grad_clip),
        (config.head.pool, config.head.init_std, config.head.batch_norm, model.drop_path),
        (mix.mixup, mix.cutmix, mix.group, config.label_smoothing, config.erase_prob),
        (config.data.augment, config.data.randaug_magnitude, config.data.randaug_std),
    )


def table(size, patch, epochs, *, batch=1024, train="all", optim, adam, head, mix, data):
    return ((size, patch, epochs, batch, train), optim, adam, head, mix, data)


RAND = ("crop", 9.0, 0.5)
FINE = {"mix": (0.8, 1.0, 32, 0.1, 0.25), "data": RAND}
PROBE = {
    "batch": 16384,
    "train": "head",
    "optim": ("lars", 0.1, 0.0, 10, 0.0),
    "adam": (0.9, 0.999, 1.0, 0.0, 0.0),  # not used by lars
    "head": ("cls", 0.01, True, 0.0),
    "mix": (0.0, 0.0, 32, 0.0, 0.0),
    "data": ("crop_once", 0.0, 0.5),
}
SCRATCH = {
    "batch": 4096,
    "optim": ("adamw", 1e-4, 0.0, 20, 0.3),
    "adam": (0.9, 0.95, 1.0, 0.9999, 0.0),
    "mix": (0.8, 1.0, 32, 0.1, 0.0),
    "data": RAND,
}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("finetune.vit_b", table("B", 16, 100, **FINE, optim=("adamw", 5e-4, 1e-6, 5, 0.05),
         adam=(0.9, 0.999, 0.65, 0.0, 0.0), head=("mean", 2e-5, False, 0.1))),
        ("finetune.vit_l", table("L", 16, 50, **FINE, optim=("adamw", 1e-3, 1e-6, 5, 0.05),
         adam=(0.9, 0.999, 0.75, 0.0, 0.0), head=("mean", 2e-5, False, 0.2))),
        ("finetune.vit_h", table("H", 14, 50, **FINE | {"mix": (0.8, 1.0, 16, 0.1, 0.25)},
         optim=("adamw", 1e-3, 1e-6, 5, 0.05), adam=(0.9, 0.999, 0.75, 0.0, 0.0),
         head=("mean", 2e-5, False, 0.3))),
        ("linprobe.vit_b", table("B", 16, 90, **PROBE)),
        ("linprobe.vit_l", table("L", 16, 50, **PROBE)),
        ("linprobe.vit_h", table("H", 14, 50, **PROBE)),
        ("scratch.vit_b", table("B", 16, 300, **SCRATCH, head=("cls", 0.02, False, 0.1))),
        ("scratch.vit_l", table("L", 16, 200, **SCRATCH, head=("cls", 0.02, False, 0.2))),
        ("scratch.vit_h", table("H", 14, 200, **SCRATCH, head=("cls", 0.02, False, 0.2))),
        ("partial.vit_l", table("L", 16, 50, train="last", mix=(0.8, 1.0, 32, 0.1, 0.0), data=RAND,
         optim=("adamw", 1e-3, 1e-6, 5, 0.05), adam=(0.9, 0.999, 0.75, 0.0, 0.0),
         head=("cls", 2e-5, False, 0.1))),
    ],
)  # fmt: skip
def test_classification_recipes_match_the_official_ones(name, expected):
    config = load(f"configs.{name}").get_config()
    assert official(config) == expected
    assert tuple(config.data.crop_scale) == (0.08, 1.0) and config.data.hflip
    assert config.model.num_classes == 1000 and config.eval_images == 0
    assert (config.head.batch_norm_group == 512) == name.startswith("linprobe")


def test_peak_learning_rates_match_the_official_ones():
    peaks = {"finetune.vit_b": 2e-3, "finetune.vit_l": 4e-3, "linprobe.vit_b": 6.4,
             "scratch.vit_b": 1.6e-3}  # fmt: skip
    for name, peak in peaks.items():
        config = load(f"configs.{name}").get_config()
        assert absolute_lr(config.optim.base_lr, config.batch_size) == pytest.approx(peak)


CIFAR = ("cifar10", *(f"{kind}.cifar10" for kind in ("finetune", "partial", "scratch")))


@pytest.mark.parametrize(
    "name, size, drop_path, decay, decays, steps",
    [("vitdet_b", "B", 0.1, 0.7, "vitdet", 184_375), ("vitdet_l", "L", 0.4, 0.8, "vitdet", 184_375),
     ("vitdet_h", "H", 0.5, 0.9, "all", 138_281), ("fpn_b", "B", 0.1, 1.0, "weights", 184_375)],
)  # fmt: skip
def test_detection_recipes_are_the_released_ones(name, size, drop_path, decay, decays, steps):
    config = load(f"configs.detection.{name}").get_config()
    assert (config.model.size, config.model.drop_path) == (size, drop_path)
    assert tuple(config.model.patch_size) == (16, 16)
    assert tuple(config.model.image_size) == (1024, 1024)
    optim, data = config.optim, config.data
    assert (optim.layer_decay, optim.decays, config.steps, config.batch_size) == (
        *(decay, decays, steps, 64),
    )
    lr = 8e-5 if name == "fpn_b" else 1e-4
    assert absolute_lr(optim.base_lr, 64) == pytest.approx(lr)
    assert (optim.b1, optim.b2, optim.weight_decay, optim.grad_clip) == (0.9, 0.999, 0.1, 0)
    assert tuple(data.scale_jitter) == (0.1, 2.0) and data.hflip and data.max_objects == 100
    assert config.eval_images == 0 and config.checkpoint.keep_best == "eval/box_ap"


@pytest.mark.parametrize("name", [*CIFAR, "linprobe.cifar10", "knn.cifar10"])
def test_laptop_settings_share_one_encoder_and_the_held_out_images(name):
    for setting in ("full", "laptop"):
        base = load("configs.cifar10").get_config(setting)
        config = load(f"configs.{name}").get_config(setting)
        for key in ("size", "embed_dim", "depth", "num_heads", "image_size", "patch_size"):
            assert config.model[key] == base.model[key]
        assert config.data.holdout == base.data.holdout == 5000
        started = "" if name in ("cifar10", "scratch.cifar10") else "runs/cifar10"
        assert config.init_from == started + ("_laptop" if started and setting == "laptop" else "")
    with pytest.raises(ValueError, match="unknown setting"):
        load(f"configs.{name}").get_config("other")
