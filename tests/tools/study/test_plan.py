"""The runs of a study."""

import os

import pytest

from mae_jax.runtime.errors import UsageError
from mae_jax.tools.study import plan

RECIPES = {
    "pretrain": "configs/cifar10.py:laptop",
    "linprobe": "configs/linprobe/cifar10.py:laptop",
    "finetune": "configs/finetune/cifar10.py:laptop",
}


def cells(rows, **more):
    overrides = dict.fromkeys(RECIPES, []) | more
    return plan.cells(rows, recipes=RECIPES, overrides=overrides, workdir="/w")


def folders(found):
    return [[os.path.relpath(stage.folder, "/w") for stage in cell.stages] for cell in found]


def test_a_row_that_changes_nothing_is_shared_by_all_studies():
    ratio = cells({"0.5": {"mask.ratio": 0.5}, "0.75": {"mask.ratio": 0.75}})
    depth = cells({"2": {"model.decoder_depth": 2}})
    assert folders(ratio) == [
        [f"mask.ratio=0.5/{stage}" for stage in RECIPES],
        [f"base/{stage}" for stage in RECIPES],
    ]
    assert folders(depth) == folders(ratio)[1:]
    base = cells({"0.75": {"mask.ratio": 0.75}}, pretrain=["--config.mask.ratio=0.5"])
    assert folders(base) == [[f"mask.ratio=0.75/{stage}" for stage in RECIPES]]


def test_later_stages_start_from_the_pretrained_encoder_and_share_its_shape():
    changes = {"model.patch_size": (8, 8), "model.decoder_depth": 1, "mask.ratio": 0.5}
    (cell,) = cells({"a": changes}, finetune=["--config.epochs=7"])
    first, probe, fine = cell.stages
    assert first.config.model.decoder_depth == 1 and first.config.mask.ratio == 0.5
    for stage in (probe, fine):
        assert stage.config.init_from == first.folder
        assert tuple(stage.config.model.patch_size) == (8, 8)
        assert not any(w.startswith(("--config.mask", "--config.model.dec")) for w in stage.words)
    assert (probe.config.epochs, fine.config.epochs) == (3, 7)


def test_rows_of_fine_tuning_share_their_pretraining():
    rows = {"1": {"trainable": "last", "trainable_blocks": 1}, "all": {"trainable": "all"}}
    assert folders(cells(rows)) == [
        ["base/pretrain", "base/linprobe", "base/finetune,trainable=last,trainable_blocks=1"],
        ["base/pretrain", "base/linprobe", "base/finetune,trainable=all"],
    ]


def test_a_folder_does_not_depend_on_the_order_of_changes():
    one, other = {"epochs": 3.0, "mask.ratio": 0.5}, {"mask.ratio": 0.5, "epochs": 3.0}
    assert folders(cells({"a": one})) == folders(cells({"a": other}))


def test_a_stage_may_have_a_recipe_for_each_row():
    study = plan.load("configs/ablations/model_size.py")
    found = plan.cells(
        study.rows, recipes=study.recipes, overrides=dict.fromkeys(RECIPES, []), workdir="/w"
    )
    assert [cell.stages[2].config.epochs for cell in found] == [100, 50, 50]
    assert [cell.stages[2].config.model.size for cell in found] == ["B", "L", "H"]


def test_stages_with_another_encoder_are_refused():
    with pytest.raises(
        UsageError, match="linprobe: --config.model.depth=4, but pre-training has 3"
    ):
        cells({"a": {}}, pretrain=["--config.model.depth=3"])


def test_impossible_rows_are_refused_with_their_name():
    for changes, message in (
        ({"mask.ratio": 2.0}, "row a, pretrain: --config.mask.ratio=2.0 must be"),
        ({"trainable": "none"}, "row a, finetune: --config.trainable=none is not one of"),
    ):
        with pytest.raises(UsageError, match=message):
            cells({"a": changes})


def test_studies_are_files_that_declare_rows(tmp_path):
    study = plan.load("configs/ablations/mask_ratio.py")
    assert study.name == "mask_ratio" and study.key == "mask.ratio" and len(study.rows) == 10
    assert plan.choose(study, []) == study.rows
    assert plan.choose(study, ["0.5", "0.55"]) == {
        "0.5": {"mask.ratio": 0.5},
        "0.55": {"mask.ratio": 0.55},
    }
    with pytest.raises(UsageError, match="--rows=0.5 is not one of with, without"):
        plan.choose(plan.load("configs/ablations/mask_token.py"), ["0.5"])
    with pytest.raises(UsageError, match="--study=configs/ablations/none.py: No such file"):
        plan.load("configs/ablations/none.py")
    with pytest.raises(UsageError, match="has no ROWS"):
        plan.load("configs/vit_l.py")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(UsageError, match="ZeroDivisionError: division by zero"):
        plan.load(str(broken))


def test_keys_of_earlier_versions_work_and_find_their_runs(tmp_path):
    (tmp_path / "mine.py").write_text('ROWS = {"a": {"picture_every": 7}, "b": {"epochs": 24.0}}')
    study = plan.load(str(tmp_path / "mine.py"))
    recipes = {"pretrain": "configs/cifar10.py:laptop"}
    one, other = plan.cells(
        study.rows,
        recipes=recipes,
        overrides={"pretrain": ["--config.data.resident"]},
        workdir="/w",
    )
    assert folders([one, other]) == [["picture_every=7/pretrain"], ["base/pretrain"]]
    config = one.stages[0].config
    assert config.figure_every == 7 and config.data.on_device
    (tmp_path / "mine.py").write_text('ROWS = {"a": {"picture_every": -7}}')
    with pytest.raises(UsageError, match="figure_every=-7 must be -1 or an integer"):
        plan.load(str(tmp_path / "mine.py"))
