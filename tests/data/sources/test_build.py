"""The registry of sources, and the sources built from it."""

import numpy as np

from mae_jax.data.sources import build
from mae_jax.data.sources.base import Record


class Gray:
    """The smallest source there can be: `count` gray images."""

    classes = None

    def __init__(self, name, count):
        self.name, self._count = name, count

    def __len__(self):
        return self._count

    def read(self, indices):
        return [Record(np.full((8, 8, 3), 128, np.uint8), {}) for _ in indices]

    def describe(self, index):
        return f"{self.name}#{index}"

    def fingerprint(self):
        return {"kind": "gray", "count": len(self)}


def test_a_new_source_is_one_function_and_one_entry(monkeypatch):
    asked = {}

    def make_gray_sources(options, *, channels, **others):
        asked.update(others, channels=channels, count=options.num_train)
        return Gray("train", options.num_train), None

    monkeypatch.setitem(build.SOURCES, "shapes", make_gray_sources)  # the schema has no other name
    config = {"source": "shapes", "num_train": 20, "holdout": 4, "cache": "decoded"}
    found = build.make_sources(config, image_size=(8, 6), channels=3, workdir="w", resuming=False)
    assert asked == {
        "image_size": (8, 6), "channels": 3, "workdir": "w", "resuming": False, "count": 20,
        "objects": False,
    }  # fmt: skip
    assert (len(found.train), found.holdout) == (16, 4)
    assert found.train.read([3])[0].data.shape == (8, 8, 3)
