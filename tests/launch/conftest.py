"""Fixtures for tests of the launch scripts."""

from pathlib import Path

import pytest

from tests.launch.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without an accelerator."""
    return Machine(tmp_path)
