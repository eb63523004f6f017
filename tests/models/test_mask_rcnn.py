"""Mask R-CNN against detectron2: heads, losses, gradients, inference (tests/parity/detection)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.convert.detectron2 import to_ours
from mae_jax.models import mask_rcnn, vitdet
from mae_jax.models.mask_rcnn import LOSSES, MaskRCNN, Objects, Settings
from mae_jax.ops import detection_losses
from mae_jax.ops.trees import flatten, unflatten
from tests.parity import official

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def nhwc(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def heads(file, part, prefix):
    """Parameters of one part of fixture h under our names, nested."""
    start = f"{part}/param/"
    names = {prefix + k.removeprefix(start): file[k] for k in file if k.startswith(start)}
    return unflatten(to_ours(names).arrays)


def totals(sums):
    """Losses of a batch on one device: detectron2's."""
    return {name: total.sum() / count.sum().clip(1) for name, (total, count) in sums.items()}


@pytest.fixture(scope="module")
def h():
    return official.arrays("detection/h_heads_losses.npz")


@pytest.fixture(scope="module")
def i():
    return official.arrays("detection/i_end_to_end.npz")


@pytest.fixture(scope="module")
def f():
    return official.arrays("detection/f_nms.npz")


class TestRegionProposalHead:
    def test_outputs_losses_and_gradients(self, h):
        params = heads(h, "rpn", "proposal_generator.rpn_head.")["rpn"]
        maps = tuple(nhwc(h[f"rpn/feat_p{level}"]) for level in range(2, 7))
        anchors = np.concatenate(mask_rcnn.pyramid_anchors((96, 128), 16, Settings()))
        labels = h["rpn/labels"]
        module = mask_rcnn.RegionProposalHead(8, jnp.float32)

        def loss(params, maps, labels):
            logits, deltas = module.apply({"params": params}, maps)
            logits, deltas = jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)
            sums = [
                detection_losses.rpn_losses(
                    logits[i][at],
                    deltas[i][at],
                    anchors[at],
                    h["rpn/matched_gt"][i][at],
                    labels[i][at],
                    np.ones(len(at), bool),
                )
                for i, at in enumerate(np.flatnonzero(row >= 0) for row in labels)
            ]
            losses = totals(jax.tree.map(lambda *x: jnp.stack(x), *sums))
            return sum(losses.values()), (losses, logits, deltas)

        grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, (losses, logits, deltas)), (d_params, d_maps) = grad(params, maps, labels)
        np.testing.assert_allclose(logits, h["rpn/logits_flat"], rtol=1e-4, atol=5e-5)
        np.testing.assert_allclose(deltas, h["rpn/deltas_flat"], rtol=1e-4, atol=5e-5)
        np.testing.assert_allclose(losses["loss_rpn_cls"], h["rpn/loss_rpn_cls"], rtol=1e-5)
        np.testing.assert_allclose(losses["loss_rpn_box"], h["rpn/loss_rpn_loc"], rtol=1e-5)
        ours = flatten(d_params)
        want = to_ours(
            {
                "proposal_generator.rpn_head.conv.conv0.weight": h["rpn/grad_conv0"],
                "proposal_generator.rpn_head.objectness_logits.weight": h["rpn/grad_objectness"],
                "proposal_generator.rpn_head.anchor_deltas.weight": h["rpn/grad_deltas"],
            }
        ).arrays
        for name, value in want.items():
            got = ours[name.removeprefix("rpn/")]
            np.testing.assert_allclose(got, value, rtol=1e-3, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(d_maps[0], nhwc(h["rpn/grad_feat_p2"]), rtol=1e-3, atol=2e-4)

        none = np.where(labels == 1, -1, labels)
        none[0, np.flatnonzero(labels[0] == 1)] = 0  # sampled as negatives, so that 256 remain
        (_, (losses, *_)), _ = grad(params, maps, none)
        assert losses["loss_rpn_box"] == 0 == h["rpn/nopos_loss_rpn_loc"]


class TestBoxHead:
    def test_outputs_losses_and_gradients(self, h):
        params = heads(h, "box", "roi_heads.")["box_head"]
        regions = nhwc(h["box/roi_feat"])
        module = mask_rcnn.BoxHead(5, 8, 24, "layer", jnp.float32)
        proposals, classes, targets = (
            np.concatenate([h[f"box/{name}_img0"], h[f"box/{name}_img1"]])
            for name in ("proposals", "gt_classes", "matched_gt")
        )
        valid = np.ones(len(classes), bool)

        @jax.jit
        def loss(params, regions):
            logits, deltas = module.apply({"params": params}, regions, False, valid)
            sums = detection_losses.box_losses(
                logits, deltas, proposals, targets, classes, classes < 5, valid
            )
            losses = totals(sums)
            return sum(losses.values()), (losses, logits, deltas)

        grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, (losses, logits, deltas)), (d_params, d_regions) = grad(params, regions)
        np.testing.assert_allclose(logits, h["box/cls_score"], rtol=1e-4, atol=5e-5)
        np.testing.assert_allclose(deltas.reshape(-1, 20), h["box/bbox_pred"], rtol=1e-4, atol=5e-5)
        np.testing.assert_allclose(losses["loss_cls"], h["box/loss_cls"], rtol=1e-5)
        np.testing.assert_allclose(losses["loss_box"], h["box/loss_box_reg"], rtol=1e-5)
        np.testing.assert_allclose(d_regions, nhwc(h["box/grad_roi_feat"]), rtol=1e-3, atol=2e-4)
        tolerance = {"rtol": 1e-3, "atol": 2e-4}
        np.testing.assert_allclose(d_params["fc1"]["bias"], h["box/grad_fc1_bias"], **tolerance)
        np.testing.assert_allclose(
            d_params["deltas"]["kernel"].T, h["box/grad_bbox_pred_weight"], **tolerance
        )
        np.testing.assert_allclose(
            d_params["norm0"]["scale"], h["box/grad_conv1_norm_weight"], **tolerance
        )


class TestMaskHead:
    def test_outputs_loss_and_gradients(self, h):
        params = heads(h, "mask", "roi_heads.")["mask_head"]
        module = mask_rcnn.MaskHead(5, 8, "layer", jnp.float32)
        classes, targets = h["mask/classes_img0"], h["mask/targets_img0"]
        positive = np.ones(len(classes), bool)

        @jax.jit
        def loss(params, regions):
            logits = module.apply({"params": params}, regions, False, positive)
            sums = detection_losses.mask_loss(logits, targets, classes, positive)
            return totals(sums)["loss_mask"], logits

        grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, logits), (d_params, d_regions) = grad(params, nhwc(h["mask/roi_feat"]))
        np.testing.assert_allclose(
            np.moveaxis(logits, -1, 1), h["mask/logits"], rtol=1e-4, atol=5e-5
        )
        np.testing.assert_allclose(value, h["mask/loss_mask"], rtol=1e-5)
        np.testing.assert_allclose(d_regions, nhwc(h["mask/grad_roi_feat"]), rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(
            d_params["predictor"]["bias"], h["mask/grad_predictor_bias"], rtol=1e-3, atol=2e-4
        )
        deconv = to_ours({"roi_heads.mask_head.deconv.weight": h["mask/grad_deconv_weight"]})
        np.testing.assert_allclose(
            d_params["deconv"]["kernel"],
            deconv.arrays["mask_head/deconv/kernel"],
            rtol=1e-3,
            atol=2e-4,
        )


def model_of(meta, window_blocks, settings):
    dim, depth, num_heads, side, window, pretrained, width, classes, hidden = map(int, meta[:9])
    return MaskRCNN(
        vitdet.ViTDet(
            image_size=(side, side),
            patch_size=(16, 16),
            channels=3,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads,
            window=window,
            global_blocks=tuple(i for i in range(depth) if i not in window_blocks),
            table_grid=(pretrained // 16, pretrained // 16),
        ),
        vitdet.SimpleFeaturePyramid(width),
        num_classes=classes,
        width=width,
        hidden_dim=hidden,
        settings=settings,
    )


def parameters(file):
    names = {k.removeprefix("param/"): file[k] for k in file if k.startswith("param/")}
    found = to_ours(names)
    assert not found.unused
    return unflatten(found.arrays)


def padded(image, side):
    """Normalized, then padded with 0."""
    out = np.zeros((side, side, 3), np.float32)
    out[: image.shape[0], : image.shape[1]] = (image - MEAN) / STD
    return out


class TestInference:
    def test_whole_model(self, i):
        meta = i["meta_dim_depth_heads_img_window_pretrain_C_K_FC_prenms_postnms"]
        # Half of `pre_nms` counts in inference.
        settings = Settings(pre_nms=2 * int(meta[9]), proposals=int(meta[10]))
        model = model_of(meta, i["meta_window_blocks"], settings)
        image = i["image_rgb_uint8"]
        images, sizes = padded(image, 128)[None], np.array([image.shape[:2]], np.int32)
        np.testing.assert_allclose(images, nhwc(i["padded_normalised"]), rtol=1e-5, atol=1e-5)
        variables = {"params": parameters(i)}
        found = jax.jit(lambda v: model.apply(v, images, sizes, method="detect"))(variables)
        number = len(i["raw_scores"])
        assert int(found.valid.sum()) == number and bool(found.complete[0])
        first = jax.tree.map(lambda x: np.asarray(x[0][:number]), found._replace(complete=None))
        np.testing.assert_array_equal(first.classes, i["raw_classes"])
        np.testing.assert_allclose(first.scores, i["raw_scores"], atol=1e-4)
        np.testing.assert_allclose(first.boxes, i["raw_boxes"], atol=5e-3)
        np.testing.assert_allclose(first.masks, i["raw_mask_probs"], atol=1e-3)

    def test_proposals_are_clipped_to_the_unpadded_image(self, i):
        assert i["proposal_boxes"][:, 2].max() == 120  # of 128: the fixture has the fault's cause
        assert i["proposal_boxes"][:, 3].max() == 100


class TestTraining:
    def test_losses_and_gradients_with_and_without_objects(self):
        m = official.arrays("detection/m_train_losses.npz")
        meta = m["meta_dim_depth_heads_img_window_pretrain_C_K_FC_prenms_postnms"]
        rpn_batch, roi_batch = (int(n) for n in m["meta_rpn_batch_roi_batch"])
        settings = Settings(
            rpn_batch=rpn_batch,
            rpn_positive=0.5,
            pre_nms=int(meta[9]),
            proposals=int(meta[10]),
            roi_batch=roi_batch,
        )
        model = model_of(meta, m["meta_window_blocks"], settings)
        images = [m[f"img{i}/image"] for i in range(2)]
        objects = [padded_objects(m, i, 128, 4) for i in range(2)]
        batch = (
            np.stack([padded(image, 128) for image in images]),
            np.array([image.shape[:2] for image in images], np.int32),
            jax.tree.map(lambda *x: np.stack(x), *objects),
            jax.random.split(jax.random.key(0), 2),
        )
        params = parameters(m)

        def loss(params, objects):
            sums = model.apply({"params": params}, *batch[:2], objects, batch[3])
            losses = totals(sums)
            return sum(losses[name] for name in LOSSES), losses

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, losses), grads = step(params, batch[2])
        names = {"loss_box": "loss_box_reg", "loss_rpn_box": "loss_rpn_loc"}
        for name, value in losses.items():
            want = m[f"loss/{names.get(name, name)}"]
            np.testing.assert_allclose(value, want, rtol=1e-3, err_msg=name)
        theirs = {k.removeprefix("grad/"): m[k] for k in m if k.startswith("grad/")}
        ours = flatten(grads)
        want = to_ours(theirs).arrays
        assert len(want) == 18
        for name, value in want.items():
            np.testing.assert_allclose(ours[name], value, rtol=5e-3, atol=1e-4, err_msg=name)
        norm = np.sqrt(sum(np.square(g).sum() for g in ours.values()))
        np.testing.assert_allclose(norm, m["grad_norm_total"], rtol=1e-3)

        # Images without objects: the padding of the ground truth makes no anchor positive.
        none = batch[2]._replace(valid=np.zeros_like(batch[2].valid))
        (_, losses), grads = step(params, none)
        assert losses["loss_mask"] == losses["loss_box"] == losses["loss_rpn_box"] == 0
        assert 0 < losses["loss_rpn_cls"] < 2 and 0 < losses["loss_cls"] < 10
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def padded_objects(m, i, side, slots):
    boxes, classes = m[f"img{i}/gt_boxes"], m[f"img{i}/gt_classes"]
    height, width = m[f"img{i}/image"].shape[:2]
    masks = np.unpackbits(m[f"img{i}/gt_masks_packed"], axis=-1)[..., :width].astype(bool)
    full = np.zeros((slots, side, side), bool)
    full[: len(masks), :height, :width] = masks
    missing = slots - len(boxes)
    return Objects(
        np.pad(boxes, ((0, missing), (0, 0))),
        np.pad(classes, (0, missing)),
        np.arange(slots) < len(boxes),
        np.packbits(full, axis=-1),
    )


class TestSuppression:
    """Fixture f; its candidates are boxes, which deltas of 0 leave as they are."""

    def test_proposals(self, f):
        levels = range(3)
        propose = jax.jit(mask_rcnn.propose, static_argnames=("pre_nms", "number"))
        for image in range(2):
            boxes = [f[f"rpn_boxes_l{i}"][image] for i in levels]
            logits = [f[f"rpn_logits_l{i}"][image] for i in levels]
            found = propose(
                logits,
                [np.zeros_like(x) for x in boxes],
                boxes,
                f["rpn_image_sizes"][image],
                pre_nms=50,
                number=40,
            )
            want = f[f"rpn_out_logits_img{image}"]
            assert int(found.valid.sum()) == len(want) and found.valid[: len(want)].all()
            np.testing.assert_array_equal(found.logits[: len(want)], want)
            np.testing.assert_allclose(
                found.boxes[: len(want)], f[f"rpn_out_boxes_img{image}"], rtol=1e-5, atol=1e-4
            )

    @pytest.mark.parametrize(("prefix", "number"), [("det_out", 30), ("det_all_out", 300)])
    def test_detections(self, f, prefix, number):
        settings = Settings(detections=number)
        found = jax.jit(mask_rcnn.detections, static_argnames="settings")(
            f["det_boxes"].reshape(60, 5, 4),
            f["det_scores"][:, :-1],
            np.ones(60, bool),
            f["det_image_hw"],
            settings=settings,
        )
        want = f[f"{prefix}_classes"]
        assert bool(found.complete) and int(found.valid.sum()) == len(want)
        np.testing.assert_array_equal(found.classes[: len(want)], want)
        np.testing.assert_array_equal(found.scores[: len(want)], f[f"{prefix}_scores"])
        np.testing.assert_allclose(
            found.boxes[: len(want)], f[f"{prefix}_boxes"], rtol=1e-5, atol=1e-5
        )

    def test_too_few_candidates_are_reported(self, f):
        settings = Settings(candidates=20, detections=30)
        found = mask_rcnn.detections(
            f["det_boxes"].reshape(60, 5, 4),
            f["det_scores"][:, :-1],
            np.ones(60, bool),
            f["det_image_hw"],
            settings,
        )
        assert not found.complete
