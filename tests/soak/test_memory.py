"""Two minutes of `python -m tests.soak.memory`, which is meant for half an hour."""

import pytest

from tests.soak.memory import slope, soak


@pytest.mark.slow
def test_memory_and_open_files_stay_flat(tmp_path):
    samples = soak(str(tmp_path), minutes=2)
    files = [files for _, _, files in samples[len(samples) // 2 :]]
    assert max(files) - min(files) < 30
    assert slope(samples) < 500  # MB an hour: a leaked picture or batch per step is far more
