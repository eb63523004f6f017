"""Matching equals Detectron2's, and sampling has its counts."""

import jax
import numpy as np
import pytest

from mae_jax.ops import matching
from tests.parity import official

match = jax.jit(matching.match, static_argnames=("low", "high", "low_quality"))
sample = jax.jit(matching.sample, static_argnames=("num", "positive_fraction"))
RPN = {"low": 0.3, "high": 0.7, "low_quality": True}
ROI = {"low": 0.5, "high": 0.5, "low_quality": False}


@pytest.fixture(scope="module")
def fixture():
    return official.arrays("detection/e_matching.npz")


def padded(iou, rows=2):
    """Padding that would win every column, before and after the ground truth."""
    pad = np.ones((rows, iou.shape[1]), np.float32)
    valid = np.r_[np.zeros(rows, bool), np.ones(len(iou), bool), np.zeros(rows, bool)]
    return np.concatenate([pad, iou, pad]), valid


@pytest.mark.parametrize("case", ["rpn", "rpn_without_low_quality", "roi", "hand"])
def test_matching_equals_the_reference(case, fixture):
    iou, matched, labels, options = {
        "rpn": ("rpn_iou", "rpn_matched", "rpn_labels", RPN),
        "rpn_without_low_quality": (
            "rpn_iou",
            "rpn_matched",
            "rpn_labels_without_low_quality",
            RPN | {"low_quality": False},
        ),
        "roi": ("roi_iou", "roi_matched", "roi_labels", ROI),
        "hand": ("hand_matrix", "hand_matched", "hand_labels", RPN),
    }[case]
    with_padding, valid = padded(fixture[iou])
    ours = match(with_padding, valid, **options)
    assert [x.dtype for x in ours] == [np.int32, np.int32]
    np.testing.assert_array_equal(ours[0] - 2, fixture[matched])
    np.testing.assert_array_equal(ours[1], fixture[labels])


def test_a_low_quality_match_keeps_its_own_ground_truth(fixture):
    # Column 5 is positive because ground truth 2 has no better box, but overlaps 0 more.
    iou = fixture["hand_matrix"]
    matched, labels = match(iou, np.ones(3, bool), **RPN)
    assert iou[2, 5] == iou[2].max() > 0 and iou[:, 5].max() < 0.3
    assert labels[5] == 1 and matched[5] == 0
    tiny = np.array([[0.5, 1e-6]], np.float32)
    assert match(tiny, np.ones(1, bool), **RPN)[1].tolist() == [1, 0]
    assert match(tiny[:, 1:], np.ones(1, bool), **RPN)[1].tolist() == [1]  # no minimum


def test_ground_truth_that_overlaps_nothing_matches_nothing(fixture):
    zero_row = fixture["hand_zero_row_matrix"]
    assert (fixture["hand_zero_row_labels"] == 1).all() and not zero_row.any(axis=1).all()
    others = zero_row[zero_row.any(axis=1)]
    _, expected = match(others, np.ones(len(others), bool), **RPN)
    for valid in (np.ones(len(zero_row), bool), zero_row.any(axis=1)):
        np.testing.assert_array_equal(match(zero_row, valid, **RPN)[1], expected)


def test_without_ground_truth_everything_is_negative(fixture):
    for options in (RPN, ROI):
        matched, labels = match(np.ones((2, 3072), np.float32), np.zeros(2, bool), **options)
        np.testing.assert_array_equal(matched, fixture["nogt_matched"])
        np.testing.assert_array_equal(labels, fixture["nogt_labels"])


def drawn(labels, num, fraction, seed=0):
    """The positives and negatives drawn, after checking the layout of the slots."""
    indices, of_slot, valid = map(np.asarray, sample(jax.random.key(seed), labels, num, fraction))
    assert indices.shape == of_slot.shape == valid.shape == (num,)
    taken, positives = valid.sum(), of_slot.sum()
    assert valid[:taken].all() and of_slot[:positives].all()  # positives, negatives, unused
    assert positives <= int(num * fraction)
    np.testing.assert_array_equal(labels[indices[:taken]], of_slot[:taken])
    assert len(set(indices[:taken])) == taken and not indices[taken:].any()
    return indices[:positives], indices[positives:taken]


def test_counts_equal_the_reference(fixture):
    for n_pos, n_neg, num, percent, taken_pos, taken_neg in fixture["subsample_counts"].tolist():
        # One size, so that programs are compiled per (num, percent) only.
        labels = np.full(9400, -1, np.int32)
        order = np.random.default_rng(0).permutation(9400)
        labels[order[:n_pos]], labels[order[n_pos : n_pos + n_neg]] = 1, 0
        positives, negatives = drawn(labels, num, percent / 100)
        assert (len(positives), len(negatives)) == (taken_pos, taken_neg)


def test_more_slots_than_boxes():
    positives, negatives = drawn(np.array([1, 0, -1, 1, 0]), 8, 0.5)
    assert set(positives) == {0, 3} and set(negatives) == {1, 4}


def test_draws_are_uniform_and_differ():
    labels = np.array([1, 0, 1, 0, 1, 0, 1, 0, -1, 0])
    draws = jax.jit(jax.vmap(lambda key: matching.sample(key, labels, 4, 0.5)))
    indices = np.asarray(draws(jax.random.split(jax.random.key(0), 4000))[0])
    for members, columns in ((labels == 1, [0, 1]), (labels == 0, [2, 3])):
        share = np.bincount(indices[:, columns].ravel(), minlength=10) / 4000
        np.testing.assert_allclose(share[members], 2 / members.sum(), atol=0.04)
        assert not share[~members].any()
    # The choices of positives and of negatives are independent.
    first = (indices[:, :2] == 0).any(axis=1)
    second = (indices[:, 2:] == 1).any(axis=1)
    assert abs((first & second).mean() - first.mean() * second.mean()) < 0.03
