"""Converts weights between formats and reports how each parameter was matched.

Examples:
  python -m mae_jax.tools.convert --from runs/vit_l --to vit_l_hf --format hf
  python -m mae_jax.tools.convert --from mae_pretrain_vit_base.pth --to vit_b

X is a run, RUN:best, one of its steps, or a weights folder; a PyTorch,
safetensors or NumPy file with any name; or a Hugging Face (ViTMAE, ViT) or timm
folder. Y is a
file or folder that does not exist yet. Without --format, its extension selects
the format: .safetensors and .pth mean `official`, .npz means `npz`, and a
folder means `mae`.

Formats:
  mae       weights folder that every command and --config.init_from accepts
  hf        Hugging Face folder (ViTMAEForPreTraining)
  hf_vit    Hugging Face folder (ViTModel, or ViTForImageClassification if the
            model has a head)
  timm      timm folder with the encoder, and the head if there is one
  official  official names in .safetensors, or in .pth if torch is installed;
            with --encoder_only, detectron2's ViTDet and mmsegmentation read it
  npz       our names in one .npz file
  detectron2  detectors: detectron2's names in .pkl, or in .pth with torch

Detectors are written as mae, npz, or detectron2.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from mae_jax import convert, inference
from mae_jax.convert import surgery
from mae_jax.convert.infer_architecture import TABLES
from mae_jax.convert.official_release import UNKNOWN
from mae_jax.runtime import filesystem, text
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import require


def run(args: argparse.Namespace) -> None:
    """Converts according to the flags, and prints the report."""
    model = convert.load(
        args.source,
        hints=_hints(args),
        decoder=not args.encoder_only,
        ema=args.ema,
        license=args.license,
    )
    say(args.source, *(f"  {line}" for line in model.report.lines()))
    _check_hints(args, model)
    before = tuple(model.metadata.get("missing", ()))
    model.report.check(allow_missing=(*args.allow_missing, *before), allow_unused=args.allow_unused)
    # An autoencoder's position tables are constants here, so they are never missing.
    missing = [n for n in model.report.missing if n not in TABLES or model.kind == "vit"]
    if missing:
        model = dataclasses.replace(model, metadata=model.metadata | {"missing": missing})
    model = _changed(model, args)
    origin = model.metadata.get("provenance", {})
    if "released" in origin:
        say(f"  official release: {origin['released']}")
    if origin.get("license", UNKNOWN) != UNKNOWN:
        say(f"  license: {origin['license']}, which also applies to derived weights")
    say(f"  {inference.describe(model)}")
    say(f"{args.to}: {convert.save(model, args.to, format=args.format)}")


def _hints(args: argparse.Namespace) -> convert.Hints:
    return convert.Hints(
        num_heads=args.num_heads,
        decoder_num_heads=args.decoder_num_heads,
        image_size=args.image_size and tuple(args.image_size),
        normalize=None if args.norm_pix_loss is None else args.norm_pix_loss == "true",
        mean=args.mean and tuple(args.mean),
        std=args.std and tuple(args.std),
        classes=text.lines(args.classes) if args.classes else None,
    )


def _check_hints(args: argparse.Namespace, model: convert.Weights) -> None:
    """Rejects flags that do not apply to this model."""
    decoder = args.norm_pix_loss is not None or args.decoder_num_heads is not None
    require(
        model.kind == "mae" or not decoder,
        "--norm_pix_loss and --decoder_num_heads need a decoder, and this model has none",
    )
    require(
        not args.classes or model.fields.get("num_classes", 0) > 0,
        "--classes needs a classification head, and this model has none",
    )


def _changed(model: convert.Weights, args: argparse.Namespace) -> convert.Weights:
    """The model with the requested changes, in the order in which they depend on each other."""
    changes = ("encoder_only", "channels", "resample_patch", "resize", "fc_norm")
    asked = [f"--{name}" for name in changes if getattr(args, name) not in (None, False)]
    require(not asked or model.kind != "mask_rcnn", f"{', '.join(asked)}: not for detectors")
    if args.encoder_only:
        model = surgery.encoder_only(model)
    if args.channels is not None or args.channel_policy != "error":
        channels = model.fields["channels"] if args.channels is None else args.channels
        model = surgery.with_channels(model, channels, args.channel_policy)
    if args.resample_patch:
        model = surgery.with_patch_size(model, _pair(args.resample_patch))
    if args.resize:
        model = surgery.with_image_size(model, _pair(args.resize))
    if args.fc_norm:
        model = surgery.with_fc_norm(model)
    return surgery.for_release(model) if args.release else model


def _pair(values: Sequence[int]) -> tuple[int, int]:
    require(len(values) in (1, 2), f"{list(values)} must be one number, or height and width")
    return values[0], values[-1]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tools.convert", __doc__)
    add = parser.add_argument
    path: dict[str, Any] = {"type": filesystem.expand}
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    numbers: dict[str, Any] = {"nargs": "+", "metavar": "N"}
    patterns: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "PATTERN"}
    add("--from", dest="source", **path, required=True, metavar="X", help="weights to read")
    add("--to", **path, required=True, metavar="Y", help="file or folder to write")
    formats = ", ".join(convert.FORMATS)
    add("--format", default="", help=f"one of {formats} (default: from the extension of Y)")
    add("--encoder_only", action="store_true", help="leave out the decoder or the head")
    add("--ema", action="store_true", help="read the averaged (EMA) weights of X")
    license = "license for the model card, such as cc-by-nc-4.0 (default: as recorded in X)"
    add("--license", default="", help=license)
    add("--allow_missing", **patterns, help="parameters (our names) that X may lack")
    add("--allow_unused", **patterns, help="arrays of X that may be ignored")
    add = parser.add_argument_group("properties that X does not record").add_argument
    add("--num_heads", **number, help="number of attention heads in the encoder")
    add("--decoder_num_heads", **number, help="number of attention heads in the decoder")
    add("--image_size", type=int, nargs=2, metavar=("H", "W"), help="training image size")
    target = "whether the target is normalized patches (true) or raw pixels (false)"
    add("--norm_pix_loss", choices=("true", "false"), help=target)
    mean = "mean of each channel, for pixels in [0, 1] (default: ImageNet's)"
    add("--mean", type=float, **numbers, help=mean)
    std = "standard deviation of each channel (default: ImageNet's)"
    add("--std", type=float, **numbers, help=std)
    classes = "text file with one class name per line, in the order of the head"
    add("--classes", **path, metavar="FILE", help=classes)
    add = parser.add_argument_group("changes to the model").add_argument
    add("--channels", **number, help="new number of image channels; needs --channel_policy")
    policy = "how the patch embedding adapts: mean, repeat or select:I,J,..."
    add("--channel_policy", default="error", metavar="POLICY", help=policy)
    add("--resize", type=int, **numbers, help="new image size, H [W]")
    add("--resample_patch", type=int, **numbers, help="new patch size, H [W]")
    norm = "apply the final norm after mean pooling, as timm's fc_norm does"
    add("--fc_norm", action="store_true", help=norm)
    release = "store float16, and leave folders of this machine out of the metadata"
    add("--release", action="store_true", help=release)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    setup_logging()
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
