"""Builds models from a configuration or from the metadata of a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp

from mae_jax.config.diff import pair
from mae_jax.models import conv, fpn, mask_rcnn, vitdet
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.targets import PatchSpec
from mae_jax.models.vit import SIZES, VisionTransformer
from mae_jax.ops import masking
from mae_jax.ops.patches import grid_size
from mae_jax.runtime.errors import UsageError, require

# Fields of a detector: of the backbone, and all others with the size of the image.
_BACKBONE_FIELDS = (
    "channels",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "drop_path",
    "window",
)
BACKBONES = ("vitdet", "fpn")
DETECTOR_FIELDS = (
    *_BACKBONE_FIELDS,
    "image_size",
    "patch_size",
    "table_grid",
    "backbone",
    "width",
    "hidden_dim",
    "num_classes",
    "settings",
)


def compute_dtype(name: str) -> Any:
    """Dtype of the arithmetic: "auto" is bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def encoder_fields(model: Any) -> dict[str, Any]:
    """Constructor arguments of the encoder in `config.model`, as JSON types.

    Raises:
      UsageError: the sizes are inconsistent.
    """
    size = SIZES[model.size]
    fields = {
        "image_size": pair(model.image_size, "--config.model.image_size"),
        "patch_size": pair(model.patch_size, "--config.model.patch_size"),
        "channels": model.channels,
        "embed_dim": model.embed_dim or size.embed_dim,
        "depth": model.depth or size.depth,
        "num_heads": model.num_heads or size.num_heads,
        "mlp_ratio": model.mlp_ratio,
    }
    _check_blocks(fields, "", model.mlp_ratio)
    return fields


def mae_fields(model: Any) -> dict[str, Any]:
    """The same for the whole masked autoencoder, except `pred_dim`, which the target sets."""
    decoder = {key: model[key] for key in model if key.startswith("decoder_")}
    _check_blocks(decoder, "decoder_", model.mlp_ratio)
    require(
        model.decoder_depth > 0 or model.encoder_mask_tokens,
        "--config.model.decoder_depth=0 needs --config.model.encoder_mask_tokens=True: without "
        "attention in the decoder, its mask tokens see nothing of the image",
    )
    return encoder_fields(model) | decoder | {"encoder_mask_tokens": model.encoder_mask_tokens}


def patch_spec(fields: dict[str, Any], data: Any) -> PatchSpec:
    """How images are patchified and normalized, from a model's fields and `config.data`."""
    sizes = {name: tuple(fields[name]) for name in ("image_size", "patch_size")}
    return PatchSpec(
        **sizes, channels=fields["channels"], mean=tuple(data["mean"]), std=tuple(data["std"])
    )


def _check_blocks(fields: dict[str, Any], part: str, mlp_ratio: float) -> None:
    dim, heads = fields[f"{part}embed_dim"], fields[f"{part}num_heads"]
    require(
        dim > 0 and heads > 0 and dim % heads == 0 and dim % 4 == 0,
        f"--config.model.{part}embed_dim={dim} must be a multiple of 4 and of "
        f"{part}num_heads={heads}",
    )
    require(
        int(dim * mlp_ratio) >= 1,
        f"--config.model.mlp_ratio={mlp_ratio} of {part}embed_dim={dim} leaves the MLPs no width",
    )


def build_mae(
    fields: dict[str, Any], *, dtype: str, attention: str = "xla", remat: str = "none"
) -> MaskedAutoencoder:
    """Builds the masked autoencoder.

    Args:
      fields: from `mae_fields` or a checkpoint's metadata.
      dtype: see `compute_dtype`.
      attention: a key of `layers.ATTENTION`.
      remat: a key of `layers.REMAT`.

    Raises:
      UsageError: the image size is not a multiple of the patch size, or this device cannot run
        `attention`.
    """
    return _build(MaskedAutoencoder, fields, dtype=dtype, attention=attention, remat=remat)


def build_vit(
    fields: dict[str, Any], *, dtype: str, attention: str = "xla", remat: str = "none"
) -> VisionTransformer:
    """Builds a classifier from `encoder_fields` plus its own arguments; see `build_mae`."""
    return _build(VisionTransformer, fields, dtype=dtype, attention=attention, remat=remat)


def _build(model_class: Any, fields: dict[str, Any], *, dtype: str, **choices: str) -> Any:
    bfloat16 = compute_dtype(dtype) == jnp.bfloat16
    require(
        choices["attention"] != "cudnn" or (bfloat16 and jax.default_backend() == "gpu"),
        "--config.model.attention=cudnn needs an NVIDIA GPU and --config.model.dtype=bfloat16: "
        "leave it at xla",
    )
    sizes: dict[str, Any] = {name: tuple(fields[name]) for name in ("image_size", "patch_size")}
    model = model_class(**fields | sizes, dtype=compute_dtype(dtype), **choices)
    try:
        _ = model.grid
    except ValueError as error:
        raise UsageError(
            f"{error} (--config.model.image_size, --config.model.patch_size)"
        ) from error
    return model


def check_mae(config: Any) -> None:
    """Raises UsageError unless the autoencoder of a configuration can be built and masked."""
    model = config.model
    mae = build_mae(mae_fields(model), dtype=model.dtype, attention=model.attention)
    visible_patches(mae, config.mask)


def check_vit(config: Any) -> None:
    """Raises UsageError unless the encoder of a configuration can be built."""
    model = config.model
    fields = encoder_fields(model) | {"num_classes": 0}
    build_vit(fields, dtype=model.dtype, attention=model.attention)


def detector_fields(config: Any) -> dict[str, Any]:
    """Arguments of `build_detector` in a configuration, except `num_classes`, as JSON types.

    Raises:
      UsageError: the sizes are inconsistent.
    """
    detector = config.detector
    fields = encoder_fields(config.model)
    size = pair(detector.pretrain_size, "--config.detector.pretrain_size")
    try:
        table = grid_size(size, tuple(fields["patch_size"]))
        grid_size(tuple(fields["image_size"]), tuple(fields["patch_size"]))
    except ValueError as error:
        raise UsageError(
            f"{error} (--config.model.image_size, --config.detector.pretrain_size, "
            "--config.model.patch_size)"
        ) from error
    return fields | {
        "backbone": detector.backbone,
        "table_grid": table,
        "drop_path": config.model.drop_path,
        "window": detector.window,
        "width": detector.width,
        "hidden_dim": detector.hidden_dim,
        "settings": {key: detector[key] for key in mask_rcnn.Settings._fields if key in detector},
    }


def build_detector(
    fields: dict[str, Any], *, dtype: str, remat: str = "none"
) -> mask_rcnn.MaskRCNN:
    """Builds Mask R-CNN on a plain ViT.

    Args:
      fields: from `detector_fields` or a checkpoint's metadata, with `num_classes`.
      dtype, remat: see `build_mae`.
    """
    compute = compute_dtype(dtype)
    own_protocol = fields["backbone"] == "fpn"
    backbone = vitdet.ViTDet(
        **{name: tuple(fields[name]) for name in ("image_size", "patch_size", "table_grid")},
        **{name: fields[name] for name in _BACKBONE_FIELDS},
        shared_positions=own_protocol,
        dtype=compute,
        remat=remat,
    )
    pyramid: Any = fpn.FeaturePyramid if own_protocol else vitdet.SimpleFeaturePyramid
    return mask_rcnn.MaskRCNN(
        backbone,
        pyramid(fields["width"], compute),
        num_classes=fields["num_classes"],
        width=fields["width"],
        hidden_dim=fields["hidden_dim"],
        norm="batch" if own_protocol else "layer",
        taps=vitdet.quarter_ends(fields["depth"]) if own_protocol else (),
        settings=mask_rcnn.Settings(**fields["settings"]),
        dtype=compute,
    )


def check_detector(config: Any) -> None:
    """Raises UsageError unless the detector of a configuration can be built."""
    fields = detector_fields(config)
    require(
        fields["backbone"] != "fpn" or fields["embed_dim"] % conv.GROUPS == 0,
        f"--config.model.embed_dim={fields['embed_dim']} must be a multiple of {conv.GROUPS} with "
        "--config.detector.backbone=fpn, which normalizes groups of channels",
    )
    require(
        fields["backbone"] != "fpn" or fields["depth"] >= 4,
        f"--config.model.depth={fields['depth']} must be at least 4 with "
        "--config.detector.backbone=fpn, which reads the last block of each quarter",
    )
    rows, columns = fields["patch_size"]
    require(
        rows == columns and rows % 4 == 0,
        f"--config.model.patch_size={(rows, columns)} must be square and a multiple of 4: the "
        "finest level of the feature pyramid has a quarter of its stride",
    )
    require(
        fields["image_size"][0] == fields["image_size"][1]
        and fields["image_size"][0] % (2 * rows) == 0,
        f"--config.model.image_size={fields['image_size']} must be square and a multiple of "
        f"{2 * rows}, twice --config.model.patch_size",
    )


def visible_patches(model: MaskedAutoencoder, mask: Any) -> int:
    """Number of patches that the encoder sees with the masks of `config.mask`.

    Raises:
      UsageError: the mask ratio hides all patches or none, or the kind of mask does not allow it.
    """
    num_patches = model.grid[0] * model.grid[1]
    try:
        keep = masking.num_keep(num_patches, mask.ratio)
    except ValueError as error:
        raise UsageError(f"{error} (--config.mask.ratio)") from error
    require(
        keep < num_patches,
        f"--config.mask.ratio={mask.ratio} hides none of {num_patches} patches: nothing to learn",
    )
    try:
        masking.check(masking.find(mask.kind), model.grid, keep)
    except ValueError as error:
        raise UsageError(
            f"{error} (--config.mask.kind={mask.kind}, --config.mask.ratio={mask.ratio}, "
            f"--config.model.image_size={model.image_size}, "
            f"--config.model.patch_size={model.patch_size})"
        ) from error
    return keep
