"""Any values for any keys: a task is built and its step traced, or each problem is one line."""

import json
import math
import random
import re

import jax
import jax.numpy as jnp
import pytest
from absl.flags import FlagValues
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mae_jax.config import flags, validate
from mae_jax.config.rules import Bool, Choice, Float, Floats, Int, Str
from mae_jax.config.schema import KEYS
from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS
from mae_jax.train.state import abstract_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections

RECIPES = {
    "configs/demo.py": {},
    "configs/finetune/demo.py": {"init_from": "", "model.drop_path": 0.1, "mix.group": 8},
    "configs/linprobe/demo.py": {"init_from": ""},
    "configs/partial/cifar10.py": {"init_from": "", "data.source": "shapes", "mix.group": 8}
    | {"model.num_classes": 12, "optim.warmup_epochs": 0.1},
    "configs/knn/demo.py": {"init_from": "", "steps": 0},
}
# Large values of these are valid, but take a long time to trace or much memory.
COSTLY = ("depth", "embed_dim", "image_size", "num_train", "num_eval", "channels")
NASTY = [
    *("", " ", "nan", "inf", "-inf", "-1", "0", "1", "-0.0", "0.5", "1e999", "1e-320", "1e30"),
    *(
        "9" * 40,
        "2147483648",
        "1_0",
        "0x10",
        "1e3",
        "True",
        "None",
        "abc",
        "-",
        "--",
        "=",
        "'",
        '"',
    ),
    *("()", "(,)", "(1", "(1,2", "(8,8)", "(8,8,8)", "(0.1,0.9)", "(nan,1)", "[]", "{}", "(1,'a')"),
    *(
        "Füße 模型",
        "%s %d %",
        "/no/such/folder",
        "~",
        "a\tb",
        "x" * 5000,
        "__import__('os')",
        "1+1",
    ),
]


def texts(key):
    """Values for the command line: valid, barely valid, barely invalid, and of other types."""
    rule = KEYS[key].rule
    costly = key.endswith(COSTLY)
    values = []
    if isinstance(rule, Int):
        values = [rule.low, rule.low + 1, rule.low - 1, rule.high + 1, *rule.also, 2, 3, 4, 8, 16]
        values += [] if costly else [rule.high, rule.high - 1, 32, 100]
    elif isinstance(rule, Floats):
        small = [rule.low, rule.high, 4, 8, 16, 32, 0.25, 0.5, 1, 1.5]
        small = [x for x in small if not costly or x <= 64]
        one = st.sampled_from(small)
        tuples = st.lists(one, min_size=0, max_size=4).map(lambda x: str(tuple(x)))
        return st.one_of(one.map(str), tuples, st.sampled_from(NASTY))
    elif isinstance(rule, Float):
        values = [rule.low, rule.high, math.nextafter(rule.low, -math.inf), 0.1, 0.5, 0.9, 1, 2, 4]
        values += [math.nextafter(rule.low, math.inf), math.nextafter(rule.high, 0), rule.high * 2]
    elif isinstance(rule, Bool):
        values = [True, False, 0, 1, "true", "no"]
    elif isinstance(rule, Choice):
        values = [*rule.options, *(word[:-1] for word in rule.options), rule.options[0].upper()]
    elif isinstance(rule, Str):
        values = ["mean", "repeat", "select:0,1", "train", "runs/x", "."]
    return st.one_of(st.sampled_from([str(x) for x in values]), st.sampled_from(NASTY))


@st.composite
def command_lines(draw):
    recipe = draw(st.sampled_from(sorted(RECIPES)))
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=4, unique=True))
    return recipe, {key: draw(texts(key)) for key in keys}


def parse(recipe, overrides):
    config = tiny_configs.CHANGES | RECIPES[recipe]
    if recipe != "configs/demo.py":
        config = {key: value for key, value in config.items() if "decoder" not in key}
    words = [f"--config.{key}={value}" for key, value in (config | overrides).items()]
    values = FlagValues()
    argv = [f"--config={recipe}", *words]
    flags.define_config(values, argv)
    return flags.parse(argv, values)


def start(config):
    """Everything that a run does before its first compilation."""
    mesh = sharding.make_mesh(**config.mesh)
    task = TASKS[config.task](config, "")
    abstract = abstract_state(task, mesh)
    if task.num_steps == 0:  # only measures
        return task
    step = make_train_step(task, abstract, mesh, seed=config.seed, grad_accum=config.grad_accum)
    shape = (config.batch_size, *task.data.image_size, config.model.channels)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, config.data.dtype),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        "index": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }
    jax.eval_shape(step, abstract, batch)
    json.dumps(task.metadata(0), allow_nan=False)
    assert all(str(value) for value in task.summary().values())
    for at in (0, task.num_steps // 2, task.num_steps):
        assert math.isfinite(float(task.schedule(at)))
    return task


def check_problems(error):
    """Every problem is one short line that names a key, and none is repeated."""
    problems = list(map(str, error.args))
    assert 1 <= len(set(problems)) == len(problems) <= 10, problems
    for problem in problems:
        assert "\n" not in problem and len(problem) < 400 and "Traceback" not in problem, problem
        named = re.findall(r"\bconfig\.(\w+(?:\.\w+)*)", problem)
        assert any(key in KEYS for key in named), problem


def started_or_refused(recipe, overrides, then=lambda task: None):
    """True when a task was built, False when its problems are listed; anything else is raised."""
    try:
        then(start(parse(recipe, overrides)))
    except UsageError as error:
        check_problems(error)
        return False
    return True


def fuzz(examples, then):
    counts = [0, 0]

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines())
    def check(example):
        counts[started_or_refused(*example, then)] += 1

    check()
    return counts


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_recipes_themselves_start(recipe):
    assert started_or_refused(recipe, {})


def test_every_command_line_starts_or_is_refused():
    refused, built = fuzz(60, lambda task: None)
    assert refused > 20 and built > 5  # both happen


@pytest.mark.slow
def test_every_command_line_starts_or_is_refused_thousands():
    """Also reads a first batch, which can fail in other ways."""

    def first_batch(task):
        if task.num_steps:
            batches = task.train_batches(0)
            try:
                assert next(batches)["image"].shape[1:3] == task.data.image_size
            finally:
                batches.close()

    refused, built = fuzz(4000, first_batch)
    assert refused > 1000 and built > 400


def test_any_object_as_any_value_is_accepted_or_refused():
    """Recipes are programs, which may put anything into their configuration."""
    objects = [
        None,
        True,
        0,
        -1,
        10**400,
        0.5,
        math.nan,
        "",
        "x",
        (),
        (1, "a"),
        [[]],
        {},
        b"",
        object,
    ]
    draw = random.Random(0)
    for key in KEYS:
        for value in [*objects, draw.random(), "\0", (math.inf, 1), "\ud800"]:
            try:
                validate.check_value(key, value)
            except UsageError as error:
                assert "\n" not in str(error) and len(str(error)) < 300
