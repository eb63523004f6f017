"""Compiled programs are cached where no other user can replace them."""

import os
from pathlib import Path

import jax
import pytest

from mae_jax.runtime import compilation_cache


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home folder; restores JAX's setting afterwards."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def used():
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


def test_the_usual_place_is_made_for_the_user_alone(home):
    before = os.umask(0)
    try:
        place = compilation_cache.enable()
    finally:
        os.umask(before)
    # The folders above were created with a umask of 0, which is not safe.
    assert place is None and used() is None
    (home / ".cache").chmod(0o755)
    (home / ".cache" / "mae_jax").chmod(0o775)  # by a group: common where every user has one
    assert compilation_cache.advice() == "this takes a while, at every start (no cache)"
    place = compilation_cache.enable("")
    assert place == used() == str(home / ".cache" / "mae_jax" / "compiled")
    assert compilation_cache.advice() == "this takes a while, the first time only (cached)"
    assert Path(place).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_place_that_others_can_write_to_is_not_used(home, caplog, mode):
    place = home / ".cache" / "mae_jax" / "compiled"
    place.mkdir(parents=True)
    place.chmod(mode)
    assert compilation_cache.enable() is None and used() is None
    assert "can be written to by others" in caplog.text
    # A folder that the user sets is used, with a warning.
    assert compilation_cache.enable(str(place)) == used() == str(place)
    assert "$JAX_COMPILATION_CACHE_DIR" in caplog.text
    place.chmod(0o755)
    caplog.clear()
    assert compilation_cache.enable() == str(place) and not caplog.text


def test_the_folder_of_another_user_is_not_used(home, caplog, monkeypatch):
    compilation_cache.enable()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert compilation_cache.enable() is None and "belongs to another user" in caplog.text


def test_a_home_that_cannot_be_written_to_costs_the_cache_alone(home, caplog):
    (home / ".cache").write_text("a file where the folder should be")
    assert compilation_cache.enable() is None and "cannot be created" in caplog.text


def test_buckets_are_left_to_jax():
    assert compilation_cache.enable("gs://bucket/compiled") == used() == "gs://bucket/compiled"
