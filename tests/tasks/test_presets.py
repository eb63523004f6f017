"""What a recipe leaves to the number of images."""

import pytest

from configs import folder
from configs.finetune import folder as finetune
from configs.linprobe import folder as linprobe
from configs.scratch import folder as scratch
from mae_jax.data.sampler import fitting_holdout
from mae_jax.tasks import adaptation
from mae_jax.tasks.pretrain import Pretrain


@pytest.mark.parametrize(
    "recipe, images, expected",
    [
        (folder, 3_000, (64, 800, 20)),
        (folder, 20_000, (256, 400, 20)),
        (folder, 1_281_167, (4096, 400, 40)),
        (finetune, 3_000, (64, 100, 10)),
        (finetune, 1_281_167, (1024, 100, 5)),
        (linprobe, 3_000, (256, 90, 10)),
        (linprobe, 1_281_167, (1024, 90, 10)),
        (scratch, 3_000, (64, 300, 20)),
    ],
)
def test_open_values_follow_from_the_number_of_images(recipe, images, expected):
    config = recipe.get_config()
    adaptation.adapt(config, num_images=images, holdout=0, num_devices=1, make_task=Pretrain)
    assert (config.batch_size, config.epochs, config.optim.warmup_epochs) == expected
    steps = config.epochs * images / config.batch_size
    assert config.eval_every == pytest.approx(steps / 20, abs=1)
    assert config.figure_every == pytest.approx(steps / 10, abs=1)


def test_values_that_are_given_stay():
    config = finetune.get_config()
    config.epochs, config.batch_size, config.eval_every = 7.0, 32, 0
    adaptation.adapt(config, num_images=640, holdout=0, num_devices=1, make_task=Pretrain)
    assert (config.epochs, config.batch_size, config.eval_every) == (7.0, 32, 0)
    assert config.figure_every == 14  # of 140 updates
    assert config.optim.warmup_epochs == 0.7  # ten epochs would be longer than the run


@pytest.mark.parametrize(
    "images, wanted, expected",
    [(3_000, -1, 300), (9, -1, 1), (1_000_000, -1, 5_000), (100, 0, 0), (100, 50, 50), (90, 64, 9)],
)
def test_a_tenth_is_held_out_where_nothing_else_is_said(images, wanted, expected):
    assert fitting_holdout(images, wanted) == expected


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ValueError, match="unknown setting 'quik': full or quick"):
        folder.get_config("quik")
