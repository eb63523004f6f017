"""Images for a task that makes its own batches."""

import numpy as np
import pytest

from mae_jax.data.transforms.scale_jitter import ScaleJitter
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.base import check_places
from mae_jax.tasks.image_data import ImageData
from tests.helpers import tiny_configs


def test_a_task_on_objects_passes_its_transforms():
    config = tiny_configs.config(batch_size=4, data__max_objects=3, data__workers=1)
    size = (32, 40)
    transforms = {
        train: ScaleJitter(config.data, image_size=size, train=train) for train in (True, False)
    }
    data = ImageData(config, "", image_size=size, make_task=pytest.fail, transforms=transforms)
    batches = data.train_batches(0)
    batch = next(batches)
    batches.close()
    assert batch["masks"].shape == (4, 3, 32, 5) and batch["object_valid"].any()
    for batch in (next(data.eval_batches(data.eval_source)), data.first_held_out(4)):
        assert batch.keys() == {"image", "size", "original_size", "index", "valid"}
        assert (batch["size"] == (32, 40)).all()
    objects = data.eval_source.read([0])[0].annotation
    assert objects["boxes"].shape == (len(objects["segments"]), 4)
    np.testing.assert_array_equal(batch["original_size"][0], objects["size"])


def test_a_missing_set_is_named_before_anything_else_starts(tmp_path):
    config = tiny_configs.config(data__source="coco", data__root=str(tmp_path))
    with pytest.raises(UsageError, match="looked for .*/annotations.json"):
        check_places(config, "")
    (tmp_path / "annotations.json").write_text("{}")
    check_places(config, "")
