"""Scripts and examples in the documentation run; its numbers and links are correct."""

import glob
import importlib
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax import convert
from mae_jax.models import targets
from mae_jax.ops import masking
from mae_jax.tools.study import plan
from mae_jax.train import throughput
from tests.helpers import tiny_configs
from tests.helpers.processes import REPO
from tests.parity import official

PAGES = [os.path.join(REPO, name) for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted(glob.glob(os.path.join(REPO, "docs", "*.md")))


def test_inference_script(tmp_path):
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    weights = str(tmp_path / "weights")
    convert.save(convert.load(official.path("mae_tiny.safetensors"), hints=hints), weights)
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    command = [
        sys.executable,
        "docs/inference.py",
        weights,
        f"{tmp_path}/*.png",
        f"{tmp_path}/out.png",
    ]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": REPO}
    )
    assert done.returncode == 0, done.stderr
    assert "features (3, 48) tokens (3, 64, 48) class token (3, 48)" in done.stdout
    assert done.stdout.count("is most like") == 3
    assert Image.open(tmp_path / "out.png").size == (3 * 100 + 4, 18 + 3 * 100 + 2 * 18)


def test_hours_in_the_multihost_page_follow_from_the_arithmetic():
    with open(os.path.join(REPO, "docs", "multihost.md"), encoding="utf-8") as file:
        table = file.read().split("| chip | peak TFLOP/s |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    names = {"TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}
    gflop = {"B": 58.7, "L": 124.5, "H": 291.4, "finetune": 369.3}
    work = [("B", 800), ("L", 800), ("H", 800), ("L", 1600), ("finetune", 50)]
    assert len(rows) == 6
    for chip, tera, *hours in rows:
        peak = throughput.PEAK_FLOPS[names.get(chip, chip if "TPU" in chip else f"NVIDIA {chip}")]
        assert float(tera) == peak / 1e12
        wanted = [
            round(epochs * 1_281_167 * gflop[kind] * 1e9 / (0.4 * peak) / 3600)
            for kind, epochs in work
        ]
        assert list(map(int, hours)) == wanted, chip


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """Imports an example of docs/extending.md by the file name on its first line."""
    with open(os.path.join(REPO, "docs", "extending.md"), encoding="utf-8") as file:
        blocks = re.findall(r"```python\n(# (\w+)\.py\n.*?)```", file.read(), re.DOTALL)
    for code, name in blocks:
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module
    for _, name in blocks:
        sys.modules.pop(name, None)


def test_own_mask_target_and_task_train_a_step(examples):
    config = tiny_configs.config(mask__kind="my_masks:columns", target__kind="my_targets:MeanColor")
    kind = examples("pretrain_flipped").PretrainFlipped
    state, metrics = tiny_configs.one_step(kind, config)
    assert 0 < metrics["loss"] < 100 and metrics["grad_norm"] > 0
    assert state.params["decoder_pred"]["kernel"].shape[1] == 3  # a color


def test_own_mask_hides_columns(examples):
    key = jax.random.key(0)
    masked = masking.masks(key, 5, (4, 6), 0.5, examples("my_masks").columns)
    columns = np.asarray(masked.mask).reshape(5, 4, 6)
    np.testing.assert_array_equal(columns, np.broadcast_to(columns[:, :1], columns.shape))
    assert (columns[:, 0].sum(axis=1) == 3).all()


def test_own_target_is_the_mean_color(examples):
    spec = targets.PatchSpec((4, 6), (2, 3), 3, (0.5,) * 3, (0.25,) * 3)
    target = examples("my_targets").MeanColor(spec)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    found = target.targets({}, images, np.array([[3], [0]]))
    cut = np.stack([images[0, 2:, 3:], images[1, :2, :3]])
    expected = (cut.mean(axis=(1, 2)) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    shown = np.asarray(target.to_pixels({}, found, images[:, :2, :3])).reshape(2, 6, 3)
    np.testing.assert_allclose(shown, np.broadcast_to(expected[:, None], (2, 6, 3)), atol=1e-5)


def test_own_source_reads_by_index(examples, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=[1, 0, 2])
    source = examples("npz").NpzSource(str(tmp_path / "set.npz"))
    assert len(source) == 3 and source.classes == ["0", "1", "2"]
    np.testing.assert_array_equal(source.read(np.array([2]))[0].data, images[2])
    json.dumps(source.fingerprint())


def test_own_study_is_one(examples):
    study = plan.load("my_study.py")
    assert study.title == "Whole columns against random patches"
    assert study.rows["columns"] == {"mask.kind": "my_masks:columns"}


LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)|!\[[^]]*\]\(([^)\s]+)\)")


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    with open(page, encoding="utf-8") as file:
        text = re.sub(r"```.*?```", "", file.read(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: os.path.relpath(page, REPO))
def test_links_lead_somewhere(page):
    with open(page, encoding="utf-8") as file:
        links = [a or b for a, b in LINK.findall(file.read())]
    for link in links:
        if link.startswith(("http", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.join(os.path.dirname(page), path) if path else page
        assert os.path.exists(target), link
        assert not anchor or anchor in anchors(target), link


def test_pages_that_code_names_exist():
    files = [os.path.join(REPO, folder, "**", "*") for folder in ("mae_jax", "configs", "launch")]
    files = [path for pattern in files for path in glob.glob(pattern, recursive=True)]
    found = set()
    for path in files:
        if path.endswith((".py", ".sh", ".sbatch", ".yaml")):
            with open(path, encoding="utf-8") as file:
                found |= set(re.findall(r"\bdocs/([a-z_]+\.md)(?:#([a-z-]+))?", file.read()))
    assert len(found) > 5
    for page, anchor in found:
        path = os.path.join(REPO, "docs", page)
        assert os.path.exists(path), page
        assert not anchor or anchor in anchors(path), f"{page}#{anchor}"
