"""Converts weights between formats and reports on every parameter.

Examples:
  python -m mae_jax.tools.convert --from runs/vit_l --to vit_l_hf --format hf
  python -m mae_jax.tools.convert --from mae_pretrain_vit_base.pth --to vit_b

X is a run, one of its steps, or a folder of weights; a PyTorch, safetensors or
NumPy file under any name; or a Hugging Face (ViTMAE, ViT) or timm folder. Y is
a file or folder that does not exist yet. Its ending decides the format where it
can: .safetensors and .pth are official names, .npz is ours, a folder is `mae`.

Formats:
  mae       folder of weights that every command and --config.init_from takes
  hf        Hugging Face folder, ViTMAEForPreTraining
  hf_vit    Hugging Face folder, ViTModel, or with a head
            ViTForImageClassification
  timm      timm folder: the encoder, with its head if it has one
  official  official names: .safetensors, or .pth where torch is installed; with
            --encoder_only, what detectron2's ViTDet and mmsegmentation take
  npz       our names, one .npz file
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
from mae_jax.runtime.cli import run_command, say, setup_logging
from mae_jax.runtime.errors import require


def run(args: argparse.Namespace) -> None:
    """Converts as the flags say, and prints the report."""
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
    # An autoencoder's tables are constants here: where they may be absent, they are not missed.
    missing = [n for n in model.report.missing if n not in TABLES or model.kind == "vit"]
    if missing:
        model = dataclasses.replace(model, metadata=model.metadata | {"missing": missing})
    model = _changed(model, args)
    origin = model.metadata.get("provenance", {})
    if "released" in origin:
        say(f"  the released {origin['released']}")
    if origin.get("license", UNKNOWN) != UNKNOWN:
        say(f"  these weights are {origin['license']}, and so is what is made of them")
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
    """Refuses flags that say nothing of this model."""
    decoder = args.norm_pix_loss is not None or args.decoder_num_heads is not None
    require(
        model.kind == "mae" or not decoder,
        "--norm_pix_loss and --decoder_num_heads are for a decoder, and there is none",
    )
    require(
        not args.classes or model.fields.get("num_classes", 0) > 0,
        "--classes: there is no head in it",
    )


def _changed(model: convert.Weights, args: argparse.Namespace) -> convert.Weights:
    """The changes that were asked for, in the order in which they can depend on each other."""
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
    return model


def _pair(values: Sequence[int]) -> tuple[int, int]:
    require(len(values) in (1, 2), f"{list(values)} must be one number, or height and width")
    return values[0], values[-1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mae_jax.tools.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        type=filesystem.expand,
        required=True,
        metavar="X",
        help="weights to read",
    )
    add("--to", type=filesystem.expand, required=True, metavar="Y", help="file or folder to write")
    add("--format", default="", help=f"one of {', '.join(convert.FORMATS)}")
    add("--encoder_only", action="store_true", help="leave out the decoder, or the head")
    add("--ema", action="store_true", help="averaged weights, of a run or a training file")
    add("--license", default="", help="of the weights, for the model card: cc-by-nc-4.0, ...")
    many: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "PATTERN"}
    add("--allow_missing", **many, help="parameters (our names) that may be absent")
    add("--allow_unused", **many, help="arrays of the file that may be left behind")
    known = parser.add_argument_group("what the file does not say")
    add = known.add_argument
    add("--num_heads", type=int, help="of the encoder")
    add("--decoder_num_heads", type=int, help="of the decoder")
    add("--image_size", type=int, nargs=2, metavar=("H", "W"), help="it was trained with")
    add("--norm_pix_loss", choices=("true", "false"), help="target: normalised patches or raw")
    add("--mean", type=float, nargs="+", help="of the pixels, in [0, 1]; default ImageNet's")
    add("--std", type=float, nargs="+", help="likewise")
    names: dict[str, Any] = {"type": filesystem.expand, "metavar": "FILE"}
    add("--classes", **names, help="names of the classes, one a line, in the head's order")
    changes = parser.add_argument_group("changes")
    add = changes.add_argument
    add("--channels", type=int, help="of the images wanted; needs --channel_policy")
    add("--channel_policy", default="error", help="mean, repeat or select:I,J,...")
    add("--resize", type=int, nargs="+", metavar="N", help="image size (H [W]) wanted")
    add("--resample_patch", type=int, nargs="+", metavar="N", help="patch size (H [W]) wanted")
    add("--fc_norm", action="store_true", help="timm: the norm behind the mean of the patches")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    setup_logging()
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
