"""Token targets: their values, the frozen tokenizer, and that a run keeps it."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from PIL import Image

from configs import demo
from mae_jax import convert, inference
from mae_jax.checkpoint import checkpointer, reader
from mae_jax.convert import tokenizer
from mae_jax.distributed import sharding
from mae_jax.models import dvae
from mae_jax.models.targets import PatchSpec, restore
from mae_jax.ops.trees import flatten, unflatten
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools.bench.step import make_task
from mae_jax.train import loop
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.convert import dall_e
from tests.helpers import tiny_configs

SIZES = {
    "channels": 3,
    "vocab_size": 16,
    "hidden_dim": 8,
    "groups": 2,
    "blocks_per_group": 1,
    "init_dim": 8,
}
SPEC = PatchSpec((16, 16), (4, 4), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def save(folder, **changes):
    """Random weights of a tokenizer, in the layout of a run."""
    sizes = SIZES | changes
    params = dvae.init_params(dvae.DiscreteVAE((4, 4), **sizes), jax.random.key(3))
    metadata = {"task": "tokenizer", "model": {"kind": "dvae", "image_size": [4, 4], **sizes}}
    checkpointer.save_weights(str(folder), jax.device_get(params), {}, metadata)
    return str(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tokenizer") / "weights")


def config(path, **changes):
    return tiny_configs.config(target__kind="tokens", target__tokenizer=path, **changes)


def make(found, spec=SPEC):
    return restore({"kind": "tokens", "tokenizer": found.metadata()}, spec, found.arrays)


def test_tokens_are_what_a_plain_encoder_says(tmp_path):
    rng = np.random.default_rng(0)
    theirs = dall_e.state_dict(rng, part="encoder", groups=2, blocks=1)
    found = tokenizer.load(dall_e.write(tmp_path / "encoder.pkl", theirs, "encoder"))
    images = rng.integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    target = make(found, PatchSpec((8, 12), (2, 2), 3, (0.5,) * 3, (0.5,) * 3))
    ids = np.stack([rng.permutation(24)[:9] for _ in range(3)])
    values = jax.jit(target.targets)(found.arrays, images, ids)
    mapped = (0.8 * images / 255 + 0.1).transpose(0, 3, 1, 2)
    whole = np.stack([dall_e.forward(theirs, x, "encoder").argmax(axis=0) for x in mapped])
    assert values.dtype == jnp.int32 and len(np.unique(values)) > 3
    np.testing.assert_array_equal(values, np.take_along_axis(whole.reshape(3, 24), ids, axis=1))
    assert target.width == 24 and not target.has_decoder
    with pytest.raises(UsageError, match="no decoder"):
        target.to_pixels(found.arrays, np.zeros((3, 24, 24)), images)


def test_images_are_shrunk_to_a_code_a_patch_as_pillow_does(path):
    found = tokenizer.load(path)
    target = make(found)
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    shrunk = np.stack(
        [[Image.fromarray(c).resize((8, 8), Image.Resampling.LANCZOS) for c in x.transpose(2, 0, 1)]
         for x in images.astype(np.float32)]
    ).transpose(0, 2, 3, 1)  # fmt: skip
    expected = np.clip(shrunk / 255, 0, 1)
    np.testing.assert_allclose(target._resized(images), expected, atol=2e-6)
    ids = np.broadcast_to(np.arange(16), (2, 16))
    model = dvae.DiscreteVAE((8, 8), **found.sizes)
    codes = model.apply({"params": unflatten(found.arrays)}, expected, method="codes")
    np.testing.assert_array_equal(target.targets(found.arrays, images, ids), codes.reshape(2, 16))


def test_loss_and_baseline(path):
    target = make(tokenizer.load(path))
    rng = np.random.default_rng(2)
    pred, values = rng.normal(size=(3, 5, 16)), rng.integers(0, 4, (3, 5))
    logs = scipy.special.log_softmax(pred, axis=-1)
    expected = [-np.mean([logs[b, i, values[b, i]] for i in range(5)]) for b in range(3)]
    np.testing.assert_allclose(target.loss(jnp.asarray(pred), values), expected, rtol=1e-5)
    baseline = target.baseline_loss(jnp.asarray(values), jnp.ones(3))
    entropy = scipy.stats.entropy(np.bincount(values.ravel()))
    assert baseline.shape == (3,) and float(baseline.mean()) == pytest.approx(entropy, rel=1e-5)
    padded = np.concatenate([values, np.full((9, 5), 7)])  # padding has no influence
    valid = jnp.asarray([1.0] * 3 + [0.0] * 9)
    np.testing.assert_allclose(target.baseline_loss(padded, valid)[:3], baseline, rtol=1e-6)


def test_a_prediction_is_drawn_by_the_decoder(path):
    found = tokenizer.load(path)
    target = make(found)
    pred = np.random.default_rng(3).normal(size=(2, 16, 16)).astype(np.float32)
    drawn = dvae.DiscreteVAE((8, 8), **found.sizes).apply(
        {"params": unflatten(found.arrays)}, pred.argmax(-1).reshape(2, 4, 4), method="decode_codes"
    )
    pixels = target.to_pixels(found.arrays, pred, np.zeros((2, 16, 16, 3), np.uint8))
    large = pixels * np.tile(SPEC.std, 16) + np.tile(SPEC.mean, 16)
    large = large.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 3)
    np.testing.assert_allclose(large, jax.image.resize(drawn, large.shape, "linear"), atol=1e-6)


def step(config):
    task = Pretrain(config, "")
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    state = create_state(task, abstract)
    before = jax.device_get(state.model_state)
    function = make_train_step(task, abstract, mesh, seed=0, grad_accum=config.grad_accum)
    batches = task.train_batches(0)
    state, values = function(state, sharding.to_device(mesh, next(batches)))
    batches.close()
    return task, before, state, jax.device_get(values)


def test_a_step_trains_the_autoencoder_and_leaves_the_tokenizer(path):
    rate = {"optim__warmup_epochs": 1e-9, "steps": 2}
    task, before, state, values = step(config(path, **rate))
    assert task.model.pred_dim == 16 == state.params["decoder_pred"]["kernel"].shape[1]
    assert values["loss"] == pytest.approx(math.log(16), rel=0.5)
    assert 0 < values["baseline_loss"] <= math.log(16) + 1e-5
    arrays = tokenizer.load(path).arrays
    after = flatten(state.model_state["target"])
    assert after.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(after[name], x)
        np.testing.assert_array_equal(flatten(before["target"])[name], x)
    assert not any("conv_1" in name for name in flatten(state.opt_state))
    _, _, sharded, split = step(config(path, **rate, mesh__fsdp=2, grad_accum=2))
    np.testing.assert_allclose(split["loss"], values["loss"], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (state.params, sharded.params)), strict=True):
        assert np.isfinite(b).all() and a.shape == b.shape
    # The weights are arguments of the compiled step, not constants.
    mesh = sharding.make_mesh()
    abstract = abstract_state(task, mesh)
    assert sum(x.size for x in jax.tree.leaves(abstract.model_state)) == sum(
        x.size for x in arrays.values()
    )


def test_a_run_continues_without_the_folder_of_its_tokenizer(tmp_path):
    path = save(tmp_path / "weights")
    settings = config(path, steps=8, eval_every=4, figure_every=8)

    def run(name, **options):
        folder = str(tmp_path / name)
        return loop.run(Pretrain(settings, folder), settings, folder, **options)

    assert run("whole")
    assert not run("parts", **tiny_configs.stop_in_step(3))
    kept = tokenizer.load(str(tmp_path / "parts"))  # a run that used one has it
    assert kept.sha256 == tokenizer.load(path).sha256
    shutil.rmtree(path)
    assert run("parts")
    for split in ("train", "eval"):
        lines = [tiny_configs.metric_lines(tmp_path / name, split) for name in ("whole", "parts")]
        assert lines[0] == lines[1] and lines[0]
    states = [reader.load_arrays(str(tmp_path / name), ("params", "model_state"))
              for name in ("whole", "parts")]  # fmt: skip
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)
    metadata = reader.load_metadata(str(tmp_path / "parts"))
    assert metadata["target"]["tokenizer"]["sha256"] == kept.sha256
    json.dumps(metadata)
    assert Image.open(tmp_path / "parts/pictures/step_00000008.png").size[0] > 300
    model = inference.load(str(tmp_path / "parts"))
    views = model.reconstruct(np.zeros((2, 16, 16, 3), np.uint8))
    assert views.predicted.shape == (2, 16, 16, 3) and np.isfinite(views.predicted).all()
    settings.resume = str(tmp_path / "parts")
    assert Pretrain(settings, str(tmp_path / "third")).target.width == 16
    settings.resume = ""
    with pytest.raises(UsageError, match="tokenizer=.*weights: no checkpoint"):
        Pretrain(settings, str(tmp_path / "fourth"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target__tokenizer": ""}, "needs --config.target.tokenizer"),
        ({"target__tokenizer": "/nowhere"}, "--config.target.tokenizer=/nowhere: no checkpoint"),
        ({"model__patch_size": (1, 1)}, "2 x 2 pixels, which patches of 1 x 1"),
        ({"model__patch_size": (4, 8)}, "patches of 4 x 8"),
        ({"data__dtype": "float32"}, "pixels in .0, 1., uint8"),
        ({"model__channels": 1, "data__mean": (0.5,), "data__std": (0.5,)}, "3 channels, not .*=1"),
    ],
)
def test_what_does_not_fit_is_refused(path, changes, message):
    with pytest.raises(UsageError, match=message):
        Pretrain(config(**{"path": path} | changes) if "target__tokenizer" not in changes
                 else tiny_configs.config(target__kind="tokens", **changes), "")  # fmt: skip


def test_without_a_decoder_nothing_is_drawn(tmp_path):
    theirs = dall_e.state_dict(np.random.default_rng(0), part="encoder", groups=2, blocks=1)
    file = dall_e.write(tmp_path / "encoder.pkl", theirs, "encoder")
    with pytest.raises(UsageError, match="set --config.figure_every=0"):
        Pretrain(config(file, figure_every=5), "")
    assert Pretrain(config(file), "").model.pred_dim == 24


def test_another_run_is_no_tokenizer(tmp_path):
    metadata = {"task": "classify", "model": {"kind": "vit"}}
    checkpointer.save_weights(str(tmp_path / "x"), {"a": np.zeros(2)}, {}, metadata)
    with pytest.raises(UsageError, match="a run of task classify where a tokenizer is needed"):
        tokenizer.load(str(tmp_path / "x"))


def test_a_tokenizer_is_read_from_one_step(tmp_path, monkeypatch):
    steps = tmp_path / "run" / "checkpoints"
    steps.mkdir(parents=True)
    save(steps / "1")
    save(tmp_path / "later", vocab_size=8)
    read = reader.load_metadata

    def saved_meanwhile(found):
        metadata = read(found)
        (tmp_path / "later").rename(steps / "2")
        return metadata

    monkeypatch.setattr(reader, "load_metadata", saved_meanwhile)
    assert tokenizer.load(str(tmp_path / "run")).sizes["vocab_size"] == 16
    monkeypatch.undo()
    assert tokenizer.load(str(tmp_path / "run")).sizes["vocab_size"] == 8


def test_a_tokenizer_is_no_autoencoder(path):
    with pytest.raises(UsageError, match="is a tokenizer, not an autoencoder"):
        convert.load(path)


def test_sizes_of_a_checkpoint_are_not_believed(path):
    found = tokenizer.load(path)
    for key, value in (("groups", 10**9), ("vocab_size", "16"), ("hidden_dim", 12)):
        metadata = found.metadata() | {key: value}
        with pytest.raises(ValueError, match="no tokenizer can have|arrays do not match"):
            restore({"kind": "tokens", "tokenizer": metadata}, SPEC, found.arrays)


def test_true_tokens_are_decoded_like_predicted_ones(path):
    found = tokenizer.load(path)
    target = restore({"kind": "tokens", "tokenizer": found.metadata()}, SPEC, found.arrays)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    tokens = target.targets(found.arrays, jnp.asarray(images), SPEC.all_ids(2))
    logits = jax.nn.one_hot(tokens, 16)
    np.testing.assert_allclose(
        target.true_pixels(found.arrays, jnp.asarray(images)),
        target.to_pixels(found.arrays, logits, jnp.asarray(images)),
        atol=1e-6,
    )


def test_the_benchmark_takes_it(path):
    settings = demo.get_config()
    settings.update_from_flattened_dict(tiny_configs.CHANGES)
    settings.target.kind, settings.target.tokenizer = "tokens", path
    assert make_task(settings).target.width == 16
