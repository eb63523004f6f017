"""Detectors built from a configuration: their parts, and what they cost."""

import importlib

import pytest

from mae_jax.models import factory, fpn, mask_rcnn, vitdet
from tests.helpers import tiny_configs

# Multiply-adds of a forward pass at 1024 pixels in 10^9, by hand from the layers' sizes.
RPN, BOX_HEAD, MASK_HEAD = 103, 66, 68  # of all anchors, of 512 regions, and of 128


def detector(name, **settings):
    """The detector of a recipe on 80 classes."""
    config = importlib.import_module(f"configs.detection.{name}").get_config()
    fields = factory.detector_fields(config) | {"num_classes": 80}
    fields["settings"] |= settings
    return factory.build_detector(fields, dtype="float32")


@pytest.mark.parametrize(
    "name, pyramid_macs", [("vitdet_b", vitdet.pyramid_macs), ("fpn_b", fpn.pyramid_macs)]
)
def test_cost_is_that_of_the_arithmetic(name, pyramid_macs):
    whole, without_masks, without_regions = (
        mask_rcnn.forward_macs(detector(name, **changes)) / 1e9
        for changes in ({}, {"roi_positive": 0.0}, {"roi_batch": 0})
    )
    backbone = detector(name).backbone
    encoder = vitdet.forward_macs(backbone) / 1e9
    pyramid = pyramid_macs(backbone.grid, backbone.embed_dim) / 1e9
    assert without_regions - encoder - pyramid == pytest.approx(RPN, rel=0.02)
    assert without_masks - without_regions == pytest.approx(BOX_HEAD, rel=0.02)
    assert whole - without_masks == pytest.approx(MASK_HEAD, rel=0.02)
    if name == "vitdet_b":
        assert whole == pytest.approx(480 + 72 + RPN + BOX_HEAD + MASK_HEAD, rel=0.02)


def test_the_papers_protocol_has_its_own_parts():
    paper, simple = detector("fpn_b"), detector("vitdet_b")
    assert isinstance(paper.pyramid, fpn.FeaturePyramid) and paper.norm == "batch"
    assert paper.taps == (2, 5, 8, 11) and paper.backbone.shared_positions
    assert paper.backbone.window == 16
    assert isinstance(simple.pyramid, vitdet.SimpleFeaturePyramid) and simple.norm == "layer"
    assert simple.taps == () and not simple.backbone.shared_positions
    assert simple.backbone.block_windows == [14, 14, 0] * 4
    assert simple.settings == mask_rcnn.Settings()


def test_every_number_of_a_recipe_reaches_the_model():
    config = tiny_configs.detect_config()
    fields = factory.detector_fields(config) | {"num_classes": 3}
    model = factory.build_detector(fields, dtype="float32")
    detector = config.detector
    assert (model.width, model.hidden_dim, model.num_classes) == (
        *(detector.width, detector.hidden_dim, 3),
    )
    for key in mask_rcnn.Settings._fields:
        if key in detector:
            assert getattr(model.settings, key) == detector[key], key
    assert model.backbone.window == detector.window and model.backbone.table_grid == (4, 4)
