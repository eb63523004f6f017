"""Valid configurations, and the messages for invalid ones."""

import dataclasses
import importlib
import math

import pytest

from configs import common, demo, vit_l
from mae_jax.config import rules, schema, validate
from mae_jax.config.diff import changes, flatten, update_names
from mae_jax.data.options import DataOptions
from mae_jax.data.sources import build, folder
from mae_jax.data.sources.shapes import ShapesSource
from mae_jax.data.transforms import crop
from mae_jax.models import factory, layers, targets, vit
from mae_jax.ops import masking
from mae_jax.optim import param_groups, schedules
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS
from tests.helpers import tiny_configs
from tests.test_configs import MODULES, REPO


@pytest.mark.parametrize("name", MODULES)
def test_recipes_keep_to_the_rules(name):
    validate.check_values(importlib.import_module(name).get_config())


def test_the_table_has_the_keys_of_the_recipes_and_no_others():
    used = {"pretrain": "vit_l", "classify": "finetune.vit_b", "knn": "knn.vit_b"}
    used |= {"detect": "detection.vitdet_b", "tokenizer": "tokenizer"}
    for task, name in used.items():
        config = importlib.import_module(f"configs.{name}").get_config()
        others = (
            ("mask.", "target.", "eval.", "model.decoder_", "model.encoder_")
            if task == "tokenizer"
            else ("-",)
        )
        mine = {key for key in flatten(config) if not key.startswith(others)}
        assert mine == schema.keys_of(task).keys()


def test_the_table_has_the_names_that_code_looks_up():
    for key, names in {
        "task": TASKS,
        "model.size": [*vit.SIZES, schema.INHERIT],
        "model.attention": layers.ATTENTION,
        "model.remat": layers.REMAT,
        "mask.kind": masking.MASKS,
        "detector.backbone": factory.BACKBONES,
        "optim.decays": param_groups.DECAYS,
        "optim.schedule": schedules.SCHEDULES,
        "data.augment": crop.AUGMENTS,
        "data.source": build.SOURCES,
        "target.kind": targets.TARGETS,
    }.items():
        rule = schema.KEYS[key].rule
        assert isinstance(rule, rules.Choice) and set(rule.options) == set(names)
    data = {key.removeprefix("data.") for key in schema.KEYS if key.startswith("data.")}
    assert data == {field.name for field in dataclasses.fields(DataOptions)} | {"std"}


def test_the_documentation_has_the_table():
    with open(f"{REPO}/docs/configuration.md", encoding="utf-8") as file:
        text = file.read()
    assert schema.markdown() in text, "run python -m mae_jax.config.schema"


@pytest.mark.parametrize(
    "key, bad",
    [
        ("batch_size", [-2, 2**24 + 1, 10**30, 1.0, True, None, "3", (1,), math.nan]),
        ("steps", [-1, 2**31, False]),
        ("seed", [-1, 2**32]),
        ("epochs", [-2.0, math.nan, math.inf, -math.inf, 1e300, "1", True, None, (1.0,)]),
        ("optim.b1", [1.0, -0.1, 1, math.nan]),
        ("mask.ratio", [1.0, -0.1, math.inf]),
        ("optim.milestones", [(0.9, 0.8), (), (1.1,), (0.1, 0.2, 0.3, 0.4, 0.5)]),
        ("optim.decays", ["", "none"]),
        ("detector.window", [0, 1.0]),
        ("detector.pretrain_size", [(), (0, 224), (1, 2, 3)]),
        ("detector.score_threshold", [-0.1, 1.1]),
        ("data.scale_jitter", [(2.0, 0.1), (1.0,), (0.0, 1.0)]),
        ("model.mlp_ratio", [0.0, -1.0]),
        ("model.size", ["", "XL", "l", None, 3, ("L",)]),
        ("model.image_size", [(), (1, 2, 3), (0, 1), (1.0, 2.0), ("a", "b"), "ab", (True, 1), -1]),
        ("data.mean", [0.5, (math.nan,) * 3, ("a",) * 3, ((1.0,),), None]),
        ("data.std", [(0.0, 1.0, 1.0), (-1.0,), (1e300,)]),
        ("data.crop_scale", [(0.0, 1.0), (0.5, 0.2), (0.5,), (0.2, 1.1), (0.1, 0.2, 0.3)]),
        ("data.hflip", [0, 1, "True", None]),
        ("init_from", [3, None, "a\nb", "x" * 5000, "\0"]),
        ("init_channels", ["", "select:", "select:1,", "select:-1", "meen"]),
        ("mesh.fsdp", [0, -2]),
        ("checkpoint.max_failures", [0]),
        ("checkpoint.keep_best", ["top1", "eval/", "/top1", "a/b/c", "eval/top 1", None]),
        ("nan_guard.max_skips", [0]),
        ("watchdog.seconds", [-1.0, math.inf]),
    ],
)
def test_values_out_of_range_are_refused_in_one_line_with_the_range(key, bad):
    for value in bad:
        with pytest.raises(UsageError) as caught:
            validate.check_value(key, value)
        text = str(caught.value)
        assert text.startswith(f"--config.{key}=") and "\n" not in text and len(text) < 250
        assert schema.KEYS[key].rule.allowed() in text
        if isinstance(value, int) and abs(value) < 2**40:
            assert f"={value} " in text


@pytest.mark.parametrize(
    "key, good",
    [
        ("epochs", [0, 0.5, 1600.0, 3]),
        ("seed", [0, 2**32 - 1]),
        ("detector.pretrain_size", [224, (224, 224), (0, 0)]),
        ("optim.milestones", [(0.5,), (8 / 9, 26 / 27)]),
        ("model.image_size", [224, (224,), (224, 192), [224, 192]]),
        ("data.mean", [(0.5,), [0.1] * 12, (0, 0, 0), (-3e4,)]),
        ("init_channels", ["error", "mean", "repeat", "select:0", "select:3,2,1"]),
        ("init_from", ["", "runs/Füße 模型 100%"]),
        ("mesh.data", [-1, 1, 8]),
        ("optim.b2", [0, 0.999]),
    ],
)
def test_values_within_the_range_are_taken(key, good):
    for value in good:
        validate.check_value(key, value)


@pytest.mark.parametrize(
    "key, meant",
    [
        ("modle.size", "; did you mean --config.model.size?"),
        ("model.sise", "; did you mean --config.model.size?"),
        ("base_lr", "; did you mean --config.optim.base_lr?"),
        ("optim.Base_LR", "; did you mean --config.optim.base_lr?"),
        ("data.mean[0]", "; did you mean --config.data.mean?"),
        ("data.path", "; did you mean --config.data.root?"),
        ("lr", "; did you mean --config.optim.base_lr?"),
        ("windw", "; did you mean --config.detector.window?"),
        ("optim.lr", "; did you mean --config.optim.base_lr?"),
        ("Learning-Rate", "; did you mean --config.optim.base_lr?"),
        ("mask_ratio", "; did you mean --config.mask.ratio?"),
        ("norm_pix_loss", "; did you mean --config.target.normalize?"),
        ("zzzz", " there is no such key (docs"),
        ("", " there is no such key (docs"),
        ("model", " is a group of keys: set one, such as --config.model.size"),
    ],
)
def test_unknown_keys_are_refused_with_what_was_meant(key, meant):
    with pytest.raises(UsageError) as caught:
        validate.check_name(key)
    assert meant in str(caught.value)


def test_other_names_lead_to_keys_and_are_none_themselves():
    assert set(schema.ALIASES.values()) <= schema.KEYS.keys()
    assert not schema.ALIASES.keys() & {key.split(".")[-1] for key in schema.KEYS}


def test_problems_of_one_start_are_reported_together(tmp_path):
    config = tiny_configs.config(
        model__image_size=(18, 16), batch_size=18, init_from=str(tmp_path / "no_run"),
        data__source="folder", data__root=f"{tmp_path}/**/*.jpg", data__mean=(0.5,),
    )  # fmt: skip
    with pytest.raises(UsageError) as caught:
        TASKS["pretrain"](config, str(tmp_path / "run"))
    first, *lines = str(caught.value).splitlines()
    assert first == "5 problems"
    for start in (
        "--config.batch_size=18 is not divisible",
        "--config.data.mean=(0.5,) has 1",
        f"--config.data.root={tmp_path}/**/*.jpg does not exist: give the folder, "
        f"--config.data.root={tmp_path}",
        f"--config.init_from={tmp_path}/no_run (default: the run of",
        "image height 18 is not",
    ):
        assert sum(line.startswith(f"  - {start}") for line in lines) == 1, (start, lines)


def test_a_run_that_continues_does_not_need_what_it_began_with(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    TASKS["pretrain"](tiny_configs.config(init_from=str(tmp_path / "gone")), str(tmp_path))


def test_an_image_is_not_a_root(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=f"give the folder .*data.root={tmp_path}$"):
        folder.check_root(str(tmp_path / "1.jpg"))


def test_the_smallest_shapes_are_those_that_can_be_drawn():
    least = validate.MIN_SHAPES_SIDE
    for side in (least - 1, least):
        source = ShapesSource("train", start=0, count=1, image_size=(side, 32), channels=3)
        if side < least:
            with pytest.raises(UsageError, match="too small"):
                source.read([0])
        else:
            source.read([0])


def test_misspelt_values_are_refused_with_what_was_meant():
    for key, value, meant in (
        ("mask.kind", "randm", "random"),
        ("model.size", "l", "L"),
        ("data.source", "folders", "folder"),
    ):
        with pytest.raises(UsageError, match=f"={value} is not one of .*; did you mean {meant}?"):
            validate.check_value(key, value)


def test_what_a_recipe_lacks_or_has_too_much_is_named():
    config = demo.get_config()
    del config.watchdog
    with pytest.raises(
        UsageError, match=r"no config.watchdog.seconds \(a n.*, which pretrain needs"
    ):
        validate.check_values(config)
    config = demo.get_config()
    del config.task
    with pytest.raises(UsageError, match=r"no config.task"):
        validate.check_values(config)
    config = demo.get_config()
    config.model.depht = 3
    with pytest.raises(UsageError, match="model.depht: .* did you mean --config.model.depth?"):
        validate.check_values(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"batch_size": 18},
            "=18 is not divisible by 4 devices x grad_accum 1 = 4; nearest: 16 or",
        ),
        ({"batch_size": 16, "grad_accum": 3}, "4 devices x grad_accum 3 = 12; nearest: 12 or 24"),
        ({"batch_size": 2}, "grad_accum 1 = 4; nearest: 4"),
        ({"model__channels": 4}, "data.mean=.* has 3 numbers, but --config.model.channels=4"),
        ({"model__image_size": (18, 16)}, "height 18 is not .* patch size 4; nearest: 16 or 20"),
        ({"model__image_size": (2048,)}, "2048.* has 262144 patches of .*4, 4.*than 65536"),
        ({"model__image_size": (4, 16)}, "shapes cannot draw images of .4, 16.: .* at least 6"),
        ({"model__mlp_ratio": 0.01}, "mlp_ratio=0.01 of decoder_embed_dim=16 leaves the MLPs no"),
        ({"model__embed_dim": 25}, "embed_dim=25 must be a multiple of 4 and of num_heads=2"),
        ({"model__decoder_num_heads": 3}, "decoder_embed_dim=16 .* decoder_num_heads=3"),
        (
            {"model__decoder_depth": 0},
            "decoder_depth=0 needs --config.model.encoder_mask_tokens=True",
        ),
        ({"mask__ratio": 0.99}, "leaves none of 16 patches visible"),
        ({"mask__ratio": 0.0}, "hides none of 16 patches"),
        ({"optim__min_lr": 1.0}, "min_lr=1 is above the learning rate 0.0003"),
        (
            {"batch_size": 100},
            "batch_size=100 is more than the 96 .* devices .4.: set .* multiple of 4 .* at most 96",
        ),
        ({"data__num_train": 3}, "more than the 3 training images, .* use fewer devices"),
        ({"steps": 0, "epochs": 0.1}, "epochs=0.1 of 96 images are 0 batches of 16"),
        ({"steps": 0, "epochs": 1e9}, "epochs=1000000000.0 of 96 images are 6000000000 batches"),
        ({"steps": 0, "epochs": 0.0}, "the run has no length"),
        ({"model__attention": "cudnn"}, "attention=cudnn needs an NVIDIA GPU"),
        ({"eval__knn_every": 1, "eval__knn_k": 97}, "knn_k=97 is more than the 96 training images"),
        ({"eval_every": 1, "data__num_eval": 0}, "no held-out images"),
        (
            {"data__mean": (123.675, 116.28, 103.53)},
            r"units of 0 to 255\? Then set --config.data.mean=\(0.485, 0.456, 0.406\)",
        ),
        ({"data__std": (58.395, 57.12, 57.375)}, r"set --config.data.std=\(0.229, 0.224, 0.225\)"),
        ({"data__mean": (0.5, -0.5, 0.5)}, "mean=.*does not fit 8-bit images, .*dtype=float32"),
        ({"data__dtype": "float32", "data__color_jitter": 0.1}, "need 8-bit color images"),
    ],
)
def test_impossible_combinations_are_refused_with_the_numbers(changes, message):
    config = tiny_configs.config(**{"data__holdout": 0, "optim__base_lr": 6e-3} | changes)
    with pytest.raises(UsageError, match=message) as caught:
        TASKS["pretrain"](config, "")
    assert "\n" not in str(caught.value)


def test_checking_needs_no_jax():
    assert vit_l.get_config().task  # configs are importable here
    for module in (validate, schema, rules):
        with open(module.__file__, encoding="utf-8") as file:
            assert "jax" not in {
                line.split()[1].split(".")[0]
                for line in file
                if line.startswith(("import ", "from "))
            }


def test_what_means_nothing_beside_another_value_may_change():
    old = tiny_configs.config()
    new = tiny_configs.config(target__tokenizer="x", target__components=5)
    assert changes(old, new) == []
    for kind, key in (("tokens", "target.tokenizer"), ("pca", "target.components")):
        old, new = tiny_configs.config(target__kind=kind), tiny_configs.config(target__kind=kind)
        new.update_from_flattened_dict({key: {"tokens": "x", "pca": 5}[kind]})
        assert [line.split(":")[0] for line in changes(old, new)] == [key]


def test_a_key_that_was_renamed_is_compared_under_its_present_name():
    old, new = tiny_configs.config().to_dict(), tiny_configs.config(data__on_device=True)
    old["picture_every"], old["data"]["resident"] = 9, True
    del old["figure_every"], old["data"]["on_device"]
    assert changes(old, new) == changes(new, old) == []
    old["data"]["resident"] = False
    assert changes(old, new) == ["data.on_device: False -> True"]
    assert update_names(old) == ["data.resident", "picture_every"]
    assert (old["figure_every"], old["data"]["on_device"]) == (9, False)
    assert "picture_every" not in old and "resident" not in old["data"]
    assert update_names(old) == []
    for broken in (None, [], {}, {"data": None}, {"data": "resident"}):
        assert update_names(broken) == []


def test_common_has_every_key_and_what_earlier_runs_did_as_its_default():
    pretraining, classification, detection, knn, tokens = (common.pretrain() for _ in range(5))
    common.classify(classification)
    common.detect(detection)
    common.knn(knn)
    common.tokenizer(tokens)
    for config in (pretraining, classification, detection, knn, tokens):
        validate.check_values(config)
        later = {k: v for k, v in flatten(config).items() if k in schema.ADDED}
        assert later.items() <= schema.ADDED.items()
    keys = [flatten(x).keys() for x in (pretraining, classification, detection, tokens)]
    assert set().union(*keys) == schema.KEYS.keys()
    data = flatten(dataclasses.asdict(DataOptions()))
    assert {k: v for k, v in flatten(pretraining.data).items() if k in data} == data


def test_every_row_is_whole():
    names = [*schema.KEYS, *schema.FORMER_NAMES]
    assert len(set(names)) == len(schema.ROWS) + len(schema.FORMER_NAMES)
    for row in schema.ROWS:
        assert set(row.tasks) <= set(schema.TASKS) == TASKS.keys()
        assert row.resume in ("compared", "harmless") and row.meaning
        assert row.added is None or row.rule.accepts(row.added), row.name
        if row.only_with:
            other, value = row.only_with
            assert schema.KEYS[other].rule.accepts(value)
