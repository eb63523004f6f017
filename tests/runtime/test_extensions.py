"""User-defined masks and targets, by `module:attribute`."""

import sys

import pytest

from mae_jax.runtime import extensions
from mae_jax.runtime.errors import UsageError

REGISTRY = {"built_in": int}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user module, `my_masks`, that nothing has imported yet."""
    (tmp_path / "my_masks.py").write_text("def stripes():\n    return 'stripes'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_masks"
    sys.modules.pop("my_masks", None)


def test_built_in_names_come_first(module):
    assert extensions.find(REGISTRY, "built_in", "--flag") is int
    assert extensions.find(REGISTRY, "my_masks:stripes", "--flag")() == "stripes"


@pytest.mark.parametrize(
    "name, message",
    [
        ("bilt_in", "--flag=bilt_in is not one of built_in"),
        ("my_masks:dots", "--flag=my_masks:dots: .*has no attribute 'dots'"),
        ("no_such_module:stripes", "--flag=no_such_module:stripes: No module named"),
        ("../my_masks:stripes", "is not one of"),
    ],
)
def test_what_cannot_be_found_is_one_line(module, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        extensions.find(REGISTRY, name, "--flag")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_does_not_choose_what_is_imported(module, monkeypatch):
    name = "my_masks:stripes"
    with pytest.raises(UsageError, match="MAE_JAX_EXTENSIONS=my_masks"):
        extensions.find_loaded(REGISTRY, name)
    assert module not in sys.modules
    monkeypatch.setenv("MAE_JAX_EXTENSIONS", "other,my_masks")
    assert extensions.find_loaded(REGISTRY, name)() == "stripes"
    monkeypatch.delenv("MAE_JAX_EXTENSIONS")
    assert extensions.find_loaded(REGISTRY, name)() == "stripes"  # now imported
    with pytest.raises(KeyError):
        extensions.find_loaded(REGISTRY, "a kind of a later version")
