"""Mask R-CNN on a feature pyramid (He et al., 1703.06870; Li et al., 2203.16527).

All shapes are static: each stage has a fixed number of slots per image and says which are valid.
Constants and conventions are detectron2's: anchors centered on multiples of the stride, foreground
classes 0 to K - 1, the background last, boxes (x0, y0, x1, y1) in pixels of the padded image.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import conv, fpn, layers, vitdet
from mae_jax.ops import boxes as box_ops
from mae_jax.ops import detection_losses as losses
from mae_jax.ops.matching import match, sample
from mae_jax.ops.nms import nms
from mae_jax.ops.roi_align import mask_targets, pyramid_roi_align

PATCH = 16  # patch size of the published models, whose levels p2 to p6 have strides 4 to 64
RATIOS = (0.5, 1.0, 2.0)  # of the anchors, height / width
BOX_SIZE, MASK_ROI_SIZE, MASK_SIZE = 7, 14, 28
ROI_CHUNK = 64  # regions of an image that are pooled at a time
NUM_LEVELS = 5  # p2 to p6
NUM_CONVS = 4  # in the box head and in the mask head
# Losses, in the order of the log.
LOSSES = ("loss_cls", "loss_box", "loss_mask", "loss_rpn_cls", "loss_rpn_box")


class Settings(NamedTuple):
    """Numbers of slots and thresholds; the defaults are those of ViTDet (2203.16527, appendix).

    Attributes:
      anchor_size: side of the anchors of p2, doubled in each following level.
      rpn_batch, rpn_positive: sampled anchors per image, and the largest share of positives.
      pre_nms: anchors kept per level before suppression in training; half of it in inference.
      proposals: proposals kept per image.
      roi_batch, roi_positive: sampled proposals per image, and the largest share of positives.
      score_threshold: detections need a higher score.
      nms_threshold: IoU above which the lower-scored detection of the same class is dropped.
      candidates: detections considered per image; see `Detections.complete`.
      detections: detections kept per image.
    """

    anchor_size: float = 32.0
    rpn_batch: int = 256
    rpn_positive: float = 0.5
    pre_nms: int = 2000
    proposals: int = 1000
    roi_batch: int = 512
    roi_positive: float = 0.25
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    candidates: int = 2000
    detections: int = 100


class Objects(NamedTuple):
    """Ground truth of a batch of images, padded to G objects.

    Attributes:
      boxes: float32 [B, G, 4].
      classes: int32 [B, G].
      valid: bool [B, G], False for padding.
      masks: uint8 [B, G, S, S / 8], `np.packbits` of the masks in the padded image.
    """

    boxes: jax.Array
    classes: jax.Array
    valid: jax.Array
    masks: jax.Array


class Proposals(NamedTuple):
    """Class-agnostic boxes, best first: boxes [..., P, 4], logits [..., P], valid bool [..., P]."""

    boxes: jax.Array
    logits: jax.Array
    valid: jax.Array


class Samples(NamedTuple):
    """Proposals that a step trains on, R per image; the positives come first.

    Attributes:
      boxes: float32 [..., R, 4].
      classes: int32 [..., R]; K is the background.
      matched: int32 [..., R], the object of each positive.
      positive, valid: bool [..., R].
    """

    boxes: jax.Array
    classes: jax.Array
    matched: jax.Array
    positive: jax.Array
    valid: jax.Array


class Detections(NamedTuple):
    """Detected objects of each image, best first, padded to D.

    Attributes:
      boxes: float32 [..., D, 4], pixels of the padded image.
      scores: float32 [..., D]; 0 for padding.
      classes: int32 [..., D].
      valid: bool [..., D].
      complete: bool [...], whether `Settings.candidates` could not change the result.
      masks: float32 [..., D, 28, 28], probabilities in the box; None before the mask head.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array
    complete: jax.Array
    masks: Any = None


class RegionProposalHead(nn.Module):
    """Objectness and box deltas of the anchors of every level.

    Attributes:
      width: channels of the pyramid.
      dtype: of the convolutions; the outputs are float32.
    """

    width: int
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, pyramid: tuple[jax.Array, ...]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Levels [B, h, w, C] -> per level logits [B, A] and deltas [B, A, 4].

        Anchors are in the order row, column, ratio.
        """

        def layer(features: int, size: int, name: str) -> conv.Conv:
            return conv.Conv(
                features, size, self.dtype, kernel_init=nn.initializers.normal(0.01), name=name
            )

        convs = [layer(self.width, 3, f"conv{i}") for i in range(2)]
        objectness = layer(len(RATIOS), 1, "objectness")
        deltas = layer(4 * len(RATIOS), 1, "deltas")
        all_logits, all_deltas = [], []
        for x in pyramid:
            for convolve in convs:
                x = nn.relu(convolve(x))
            batch = x.shape[0]
            all_logits.append(objectness(x).astype(jnp.float32).reshape(batch, -1))
            all_deltas.append(deltas(x).astype(jnp.float32).reshape(batch, -1, 4))
        return all_logits, all_deltas


class BoxHead(nn.Module):
    """Class scores and box deltas of regions: four convolutions and one hidden layer.

    Attributes:
      num_classes: K.
      width: channels of the convolutions.
      hidden_dim: width of the hidden layer.
      norm: see `conv.norm`.
      dtype: of the arithmetic up to the hidden layer; the outputs are float32.
    """

    num_classes: int
    width: int
    hidden_dim: int
    norm: str
    dtype: layers.Dtype

    @nn.compact
    def __call__(
        self, regions: jax.Array, train: bool, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Regions [N, 7, 7, C] -> logits float32 [N, K + 1], deltas float32 [N, K, 4].

        `train` and `valid` [N] matter for BatchNorm only.
        """
        x = _conv_stack(regions, self.width, self.norm, self.dtype, train, valid)
        x = x.reshape(x.shape[0], -1)
        uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        x = nn.relu(layers.dense(self.hidden_dim, self.dtype, "fc1", uniform)(x))
        x = x.astype(jnp.float32)
        scores = layers.dense(
            self.num_classes + 1, jnp.float32, "scores", nn.initializers.normal(0.01)
        )
        deltas = layers.dense(
            4 * self.num_classes, jnp.float32, "deltas", nn.initializers.normal(0.001)
        )
        return scores(x), deltas(x).reshape(-1, self.num_classes, 4)


class MaskHead(nn.Module):
    """A mask per class for each region; attributes as in `BoxHead`."""

    num_classes: int
    width: int
    norm: str
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, regions: jax.Array, train: bool, valid: jax.Array) -> jax.Array:
        """Regions [N, 14, 14, C] -> logits float32 [N, 28, 28, K]."""
        x = _conv_stack(regions, self.width, self.norm, self.dtype, train, valid)
        # Kaiming as PyTorch counts it: a transposed convolution's fan-out is its input.
        init = nn.initializers.normal((2 / (4 * self.width)) ** 0.5)
        x = nn.relu(conv.Deconv2x2(self.width, self.dtype, kernel_init=init, name="deconv")(x))
        small = nn.initializers.normal(0.001)
        predictor = conv.Conv(self.num_classes, 1, jnp.float32, kernel_init=small, name="predictor")
        return predictor(x)


def _conv_stack(
    x: jax.Array, width: int, norm: str, dtype: layers.Dtype, train: bool, valid: jax.Array
) -> jax.Array:
    """Four times 3x3 convolution, norm, ReLU; called in a compact method."""
    for i in range(NUM_CONVS):
        x = conv.Conv(width, 3, dtype, bias=False, kernel_init=conv.MSRA, name=f"conv{i}")(x)
        x = conv.norm(norm, x, dtype=dtype, name=f"norm{i}", train=train, valid=valid)
        x = nn.relu(x)
    return x


class MaskRCNN(nn.Module):
    """Detection and instance segmentation.

    Attributes:
      backbone: `ViTDet`.
      pyramid: module from the backbone's features to the levels p2 to p6, each [B, H / stride,
        W / stride, C].
      num_classes: K.
      width: C, also the width of the heads.
      hidden_dim: width of the hidden layer of the box head.
      norm: in the box and mask heads, see `conv.norm`.
      taps: blocks whose outputs the pyramid reads; () reads the last one.
      settings: numbers of slots and thresholds.
      dtype: of the heads' arithmetic; scores, deltas and everything about boxes are float32.
    """

    backbone: vitdet.ViTDet
    pyramid: Any
    num_classes: int
    width: int = 256
    hidden_dim: int = 1024
    norm: str = "layer"
    taps: tuple[int, ...] = ()
    settings: Settings = Settings()
    dtype: layers.Dtype = jnp.float32

    @property
    def patch_size(self) -> int:
        """Side of a patch; the strides of the levels are a quarter of it to four times it."""
        return self.backbone.patch_size[0]

    def setup(self):
        self.rpn = RegionProposalHead(self.width, self.dtype)
        self.box_head = BoxHead(
            self.num_classes, self.width, self.hidden_dim, self.norm, self.dtype
        )
        self.mask_head = MaskHead(self.num_classes, self.width, self.norm, self.dtype)

    def __call__(
        self,
        images: jax.Array,
        sizes: jax.Array,
        objects: Objects,
        keys: jax.Array,
        noise: jax.Array | None = None,
        train: bool = True,
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The losses of each image.

        Args:
          images: normalized and then padded with 0 at the bottom and the right, [B, H, W, 3].
          sizes: (height, width) of the unpadded images, int32 [B, 2].
          objects: ground truth.
          keys: a PRNG key per image, for sampling.
          noise: uniform [B, depth, 2] for stochastic depth; None drops nothing.
          train: use the statistics of the batch in BatchNorm.

        Returns:
          (sum [B], count [B]) by name (`LOSSES`): the loss of an image is sum / max(count, 1).
        """
        pyramid = self.features(images, noise, train)
        logits, deltas = self.rpn(pyramid)
        anchors = pyramid_anchors(images.shape[1:3], self.patch_size, self.settings)
        rpn_keys, roi_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        rpn = jax.vmap(
            lambda *image: _rpn_losses(*image, anchors=jnp.concatenate(anchors), s=self.settings)
        )(jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1), objects, rpn_keys)
        proposals = self._proposals(logits, deltas, anchors, sizes, self.settings.pre_nms)
        samples = jax.vmap(lambda *image: self._sample(*image))(proposals, objects, roi_keys)
        box = self._box_losses(pyramid, samples, objects, train)
        return rpn | box | self._mask_loss(pyramid, samples, objects, train)

    def detect(self, images: jax.Array, sizes: jax.Array) -> Detections:
        """Detected objects; arguments as for the losses."""
        pyramid = self.features(images)
        logits, deltas = self.rpn(pyramid)
        anchors = pyramid_anchors(images.shape[1:3], self.patch_size, self.settings)
        proposals = self._proposals(logits, deltas, anchors, sizes, self.settings.pre_nms // 2)
        classes, box_deltas = self._on_regions(
            self.box_head, pyramid, proposals.boxes, proposals.valid, BOX_SIZE
        )
        boxes = box_ops.decode(box_deltas, proposals.boxes[:, :, None], losses.ROI_WEIGHTS)
        scores = jax.nn.softmax(classes)[..., :-1]
        found = jax.vmap(lambda b, s, v, size: detections(b, s, v, size, self.settings))(
            boxes, scores, proposals.valid, sizes
        )
        masks = self._on_regions(self.mask_head, pyramid, found.boxes, found.valid, MASK_ROI_SIZE)
        masks = jnp.take_along_axis(masks, found.classes[..., None, None, None], axis=-1)[..., 0]
        return found._replace(masks=jax.nn.sigmoid(masks))

    def touch(self, images: jax.Array) -> None:
        """Calls every layer once, to initialize the parameters; arguments as for the losses."""
        valid = jnp.ones(1, bool)
        self.rpn(self.features(images, train=True))
        self.box_head(jnp.zeros((1, BOX_SIZE, BOX_SIZE, self.width)), True, valid)
        self.mask_head(jnp.zeros((1, MASK_ROI_SIZE, MASK_ROI_SIZE, self.width)), True, valid)

    def features(
        self, images: jax.Array, noise: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """The levels p2 to p6; arguments as for the losses."""
        if not self.taps:
            return self.pyramid(self.backbone(images, noise))
        return self.pyramid(self.backbone.features(images, self.taps, noise), train)

    def _proposals(self, logits, deltas, anchors, sizes, pre_nms: int) -> Proposals:
        """Proposals of all images; they carry no gradient."""
        logits, deltas = jax.lax.stop_gradient((logits, deltas))
        return jax.vmap(
            lambda logits, deltas, size: propose(
                logits, deltas, anchors, size, pre_nms=pre_nms, number=self.settings.proposals
            )
        )(logits, deltas, sizes)

    def _sample(self, proposals: Proposals, objects: Objects, key: jax.Array) -> Samples:
        """Proposals of one image to train on; its objects are proposals too."""
        boxes = jnp.concatenate([proposals.boxes, objects.boxes])
        valid = jnp.concatenate([proposals.valid, objects.valid])
        iou = box_ops.iou(objects.boxes, boxes)
        matched, labels = match(iou, objects.valid, low=0.5, high=0.5, low_quality=False)
        labels = jnp.where(valid, labels, -1)
        s = self.settings
        picked, label, valid = sample(key, labels, s.roi_batch, s.roi_positive)
        matched, positive = matched[picked], valid & (label == 1)
        classes = jnp.where(positive, objects.classes[matched], self.num_classes)
        return Samples(boxes[picked], classes, matched, positive, valid)

    def _box_losses(self, pyramid, samples: Samples, objects: Objects, train: bool):
        logits, deltas = self._on_regions(
            self.box_head, pyramid, samples.boxes, samples.valid, BOX_SIZE, train
        )
        matched = jnp.take_along_axis(objects.boxes, samples.matched[..., None], axis=1)
        return jax.vmap(losses.box_losses)(
            logits, deltas, samples.boxes, matched, samples.classes, samples.positive, samples.valid
        )

    def _mask_loss(self, pyramid, samples: Samples, objects: Objects, train: bool):
        slots = int(self.settings.roi_batch * self.settings.roi_positive)
        samples = jax.tree.map(lambda x: x[:, :slots], samples)
        logits = self._on_regions(
            self.mask_head, pyramid, samples.boxes, samples.positive, MASK_ROI_SIZE, train
        )
        targets = jax.vmap(lambda *x: mask_targets(*x, size=MASK_SIZE))(
            objects.masks, samples.matched, samples.boxes
        )
        return jax.vmap(losses.mask_loss)(logits, targets, samples.classes, samples.positive)

    def _on_regions(
        self,
        head: Any,
        pyramid: tuple[jax.Array, ...],
        boxes: jax.Array,
        valid: jax.Array,
        size: int,
        train: bool = False,
    ) -> Any:
        """Applies a head to the boxes [B, R, 4] of every image: arrays [B, R, ...]."""
        batch, number = boxes.shape[:2]
        # The levels of other patch sizes are those of an image enlarged to patches of 16.
        regions = jax.vmap(
            lambda levels, boxes: pyramid_roi_align(levels, boxes, size=size, chunk=ROI_CHUNK)
        )(pyramid[:4], boxes * (PATCH / self.patch_size))
        out = head(regions.reshape(batch * number, *regions.shape[2:]), train, valid.reshape(-1))
        return jax.tree.map(lambda x: x.reshape(batch, number, *x.shape[1:]), out)


def pyramid_anchors(image_size: tuple[int, ...], patch_size: int, settings: Settings) -> list[Any]:
    """Anchors of each level, float32 [A, 4]."""
    strides = tuple(patch_size * 2**level // 4 for level in range(NUM_LEVELS))
    sizes = tuple(settings.anchor_size * 2**level for level in range(NUM_LEVELS))
    height, width = image_size
    return box_ops.pyramid_anchors((height, width), strides, sizes, RATIOS)


def propose(
    logits: list[jax.Array],
    deltas: list[jax.Array],
    anchors: list[jax.Array],
    size: jax.Array,
    *,
    pre_nms: int,
    number: int,
) -> Proposals:
    """The best boxes of one image after suppression within each level.

    Args:
      logits, deltas, anchors: of each level: [A], [A, 4], [A, 4].
      size: (height, width) of the unpadded image, to which boxes are clipped.
      pre_nms: anchors considered per level.
      number: boxes to return, or fewer if there are not as many anchors.
    """
    levels = [
        _best_of_level(*level, size, pre_nms) for level in zip(logits, deltas, anchors, strict=True)
    ]
    slots = max(level.logits.shape[0] for level in levels)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(_pad(level, slots) for level in levels))
    keep = jax.vmap(lambda p: nms(p.boxes, p.logits, p.valid, 0.7))(stacked)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked)
    scores = jnp.where(keep.reshape(-1), flat.logits, -jnp.inf)
    scores, best = jax.lax.top_k(scores, min(number, scores.shape[0]))
    return Proposals(flat.boxes[best], scores, jnp.isfinite(scores))


def _best_of_level(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array, size: jax.Array, number: int
) -> Proposals:
    logits, best = jax.lax.top_k(logits, min(number, logits.shape[0]))
    decoded = box_ops.decode(deltas[best], jnp.asarray(anchors)[best], losses.RPN_WEIGHTS)
    finite = jnp.isfinite(logits) & jnp.isfinite(decoded).all(-1)
    clipped = box_ops.clip(jnp.where(finite[:, None], decoded, 0.0), size[0], size[1])
    return Proposals(clipped, logits, finite & box_ops.nonempty(clipped))


def _pad(proposals: Proposals, slots: int) -> Proposals:
    missing = slots - proposals.logits.shape[0]
    boxes, logits, valid = proposals
    return Proposals(
        jnp.pad(boxes, ((0, missing), (0, 0))),
        jnp.pad(logits, (0, missing), constant_values=-jnp.inf),
        jnp.pad(valid, (0, missing)),
    )


def _rpn_losses(logits, deltas, objects: Objects, key: jax.Array, *, anchors, s: Settings):
    """Losses of one image's anchors: a random sample of them."""
    iou = box_ops.iou(objects.boxes, anchors)
    matched, labels = match(iou, objects.valid, low=0.3, high=0.7, low_quality=True)
    picked, label, valid = sample(key, labels, s.rpn_batch, s.rpn_positive)
    return losses.rpn_losses(
        logits[picked],
        deltas[picked],
        anchors[picked],
        objects.boxes[matched[picked]],
        label,
        valid,
    )


def detections(
    boxes: jax.Array, scores: jax.Array, valid: jax.Array, size: jax.Array, settings: Settings
) -> Detections:
    """The detections of one image, without masks.

    Args:
      boxes: of each proposal and class, [P, K, 4].
      scores: likewise [P, K], without the background's.
      valid: bool [P]; proposals with values that are not finite are dropped too.
      size: (height, width) of the unpadded image, to which boxes are clipped.
      settings: thresholds and numbers.
    """
    usable = valid & jnp.isfinite(boxes).all((1, 2)) & jnp.isfinite(scores).all(1)
    scores = jnp.where(usable[:, None], scores, 0.0)
    clipped = box_ops.clip(jnp.where(usable[:, None, None], boxes, 0.0), size[0], size[1])
    above = scores > settings.score_threshold
    ranked = jnp.where(above, scores, -1.0).reshape(-1)
    top, best = jax.lax.top_k(ranked, min(settings.candidates, ranked.shape[0]))
    boxes, labels = clipped.reshape(-1, 4)[best], best % scores.shape[1]
    keep = nms(boxes, top, top > 0, settings.nms_threshold, groups=labels)
    final, order = jax.lax.top_k(jnp.where(keep, top, -1.0), min(settings.detections, top.shape[0]))
    valid = final > 0
    complete = (valid.sum() == settings.detections) | (above.sum() <= top.shape[0])
    return Detections(
        jnp.where(valid[:, None], boxes[order], 0.0),
        jnp.where(valid, final, 0.0),
        jnp.where(valid, labels[order], 0),
        valid,
        complete,
    )


def init_variables(model: MaskRCNN, key: jax.Array) -> tuple[Any, Any]:
    """Initial (parameters, other variables)."""
    side = 4 * model.patch_size  # no parameter depends on the size of the image
    images = jnp.zeros((1, side, side, model.backbone.channels))
    variables = dict(model.init(key, images, method="touch"))
    return variables.pop("params"), variables


def forward_macs(model: MaskRCNN) -> float:
    """Multiply-adds of a training step's forward pass for one image.

    Counts linear layers, convolutions and attention; not ROIAlign, whose cost depends on how it is
    computed.
    """
    backbone, width, classes = model.backbone, model.width, model.num_classes
    rows, columns = backbone.grid
    cells = sum(
        -(-rows * 4 // 2**level) * -(-columns * 4 // 2**level) for level in range(NUM_LEVELS)
    )
    rpn = cells * (2 * 9 * width**2 + 5 * len(RATIOS) * width)
    stack = NUM_CONVS * 9 * width**2
    box = BOX_SIZE**2 * (stack + width * model.hidden_dim) + model.hidden_dim * (5 * classes + 1)
    mask = MASK_ROI_SIZE**2 * (stack + 4 * width**2) + MASK_SIZE**2 * width * classes
    s = model.settings
    regions = s.roi_batch * box + int(s.roi_batch * s.roi_positive) * mask
    pyramid_macs = fpn.pyramid_macs if model.taps else vitdet.pyramid_macs
    pyramid = pyramid_macs(backbone.grid, backbone.embed_dim, width)
    return vitdet.forward_macs(backbone) + pyramid + rpn + regions
