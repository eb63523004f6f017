"""Configuration files of Hugging Face's `vit_mae` and `vit` models."""

from typing import Any

from mae_jax.convert.weights import Weights
from mae_jax.models.layers import LN_EPS
from mae_jax.runtime.errors import UsageError

_BICUBIC = 3  # PIL's number


def mae_config(model: Weights) -> dict[str, Any]:
    """config.json of a `ViTMAEForPreTraining`.

    Raises:
      UsageError: there is no decoder; or it has mask tokens in the encoder, or images or patches
        that are not square, which Hugging Face does not support.
    """
    if model.kind != "mae":
        raise UsageError("no decoder weights: use --format=hf_vit to write only the encoder")
    fields = model.fields
    if fields.get("encoder_mask_tokens"):
        raise UsageError(
            "Hugging Face's ViTMAE has no mask tokens in its encoder: use --format=hf_vit to write "
            "only the encoder"
        )
    for key in ("image_size", "patch_size"):
        if fields[key][0] != fields[key][1]:
            raise UsageError(
                f"Hugging Face's ViTMAE supports only a square {key}, not {fields[key]}: "
                "use --format=hf_vit to write only the encoder"
            )
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **_encoder(fields),
        "decoder_hidden_size": fields["decoder_embed_dim"],
        "decoder_intermediate_size": int(fields["decoder_embed_dim"] * fields["mlp_ratio"]),
        "decoder_num_attention_heads": fields["decoder_num_heads"],
        "decoder_num_hidden_layers": fields["decoder_depth"],
        "mask_ratio": model.metadata["mask"]["ratio"],
        "norm_pix_loss": model.metadata["target"]["normalize"],
    }


def vit_config(model: Weights) -> dict[str, Any]:
    """config.json of a `ViTModel`, or of a `ViTForImageClassification` if there is a head.

    Raises:
      UsageError: the model uses mean pooling, which these do not support.
    """
    fields, number = model.fields, model.fields["num_classes"]
    if fields["pool"] != "cls":
        raise UsageError(
            "the model pools the mean of its patches (fc_norm), which Hugging Face's ViT does not "
            "support: use --format=timm"
        )
    config = {
        "architectures": ["ViTForImageClassification" if number else "ViTModel"],
        "model_type": "vit",
        **_encoder(fields),
    }
    if number:
        classes = model.metadata["classes"] or [f"LABEL_{i}" for i in range(number)]
        config["id2label"] = {str(i): name for i, name in enumerate(classes)}
        config["label2id"] = {name: i for i, name in enumerate(classes)}
    return config


def preprocessor_config(model: Weights) -> dict[str, Any]:
    """preprocessor_config.json: bicubic resize to the model's size, its mean and deviation."""
    height, width = model.fields["image_size"]
    data = model.metadata["data"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data["mean"]),
        "image_std": list(data["std"]),
    }


def _encoder(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": _one_or_two(fields["image_size"]),
        "patch_size": _one_or_two(fields["patch_size"]),
        "num_channels": fields["channels"],
        "hidden_size": fields["embed_dim"],
        "num_hidden_layers": fields["depth"],
        "num_attention_heads": fields["num_heads"],
        "intermediate_size": int(fields["embed_dim"] * fields["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": LN_EPS,  # the library's default is 1e-12
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "dtype": "float32",
        "torch_dtype": "float32",  # the same, for transformers 4
    }


def _one_or_two(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)
