"""Configuration file of a timm model, for `timm.create_model("local-dir:FOLDER")`."""

from typing import Any

from mae_jax.convert.official_release import UNKNOWN
from mae_jax.convert.weights import Weights

# timm's names of these encoders; other sizes are its ViT-B with arguments.
_ARCHITECTURES = {
    ("Ti", 16): "vit_tiny_patch16_224",
    ("S", 16): "vit_small_patch16_224",
    ("B", 16): "vit_base_patch16_224",
    ("L", 16): "vit_large_patch16_224",
    ("H", 14): "vit_huge_patch14_224",
}


def config(model: Weights) -> dict[str, Any]:
    """config.json: architecture, arguments that override it, pixels, class names."""
    fields, metadata = model.fields, model.metadata
    patch = fields["patch_size"]
    known = (metadata["model"]["size"], patch[0])
    classes = fields["num_classes"]
    details = {
        "tag": "mae",
        "input_size": [fields["channels"], *fields["image_size"]],
        "interpolation": "bicubic",
        "crop_pct": 0.875,  # as in our evaluation transform and the official one
        "crop_mode": "center",
        "mean": list(metadata["data"]["mean"]),
        "std": list(metadata["data"]["std"]),
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    if metadata.get("classes"):
        details["label_names"] = list(metadata["classes"])
    license = metadata.get("provenance", {}).get("license", UNKNOWN)
    if license != UNKNOWN:
        details["license"] = license
    pool = "token" if fields["pool"] == "cls" else "avg"
    return {
        "architecture": _ARCHITECTURES.get(known, "vit_base_patch16_224"),
        "num_classes": classes,
        "num_features": fields["embed_dim"],
        "global_pool": pool,
        "model_args": {
            "img_size": list(fields["image_size"]),
            "patch_size": patch[0] if patch[0] == patch[1] else list(patch),
            "in_chans": fields["channels"],
            "embed_dim": fields["embed_dim"],
            "depth": fields["depth"],
            "num_heads": fields["num_heads"],
            "mlp_ratio": fields["mlp_ratio"],
            "global_pool": pool,  # timm reads only these arguments, not the keys above
        },
        "pretrained_cfg": details,
    }
