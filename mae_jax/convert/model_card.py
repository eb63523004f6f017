"""The model card (README.md) that goes with exported weights."""

from typing import Any

from mae_jax.convert.official_release import UNKNOWN
from mae_jax.convert.weights import Weights
from mae_jax.models import targets

HUGGING_FACE_MAE = """from transformers import ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained("FOLDER")  # masks at random, in evaluation too"""
HUGGING_FACE_VIT = """from transformers import ViTModel

model = ViTModel.from_pretrained("FOLDER", add_pooling_layer=False)  # the pooler is not trained"""
HUGGING_FACE_CLASSIFIER = """from transformers import ViTForImageClassification

model = ViTForImageClassification.from_pretrained("FOLDER")"""
TIMM = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)"""
TIMM_CLASSIFIER = f"""{TIMM}
classes = model.eval()(images).argmax(dim=1)  # named by model.pretrained_cfg["label_names"]"""


def text(model: Weights, usage: str) -> str:
    """README.md with the license in its header, as the Hugging Face hub expects it.

    Args:
      model: the exported model.
      usage: Python code that loads it.
    """
    origin = model.metadata.get("provenance", {})
    license = origin.get("license", UNKNOWN)
    library = usage.split()[1]  # "import timm", "from transformers import ..."
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(model).items())
    return f"""---
license: {license}
library_name: {library}
tags:
- {_task(model)}
- masked-autoencoder
---

# {_title(model)}

From masked autoencoders (He et al., arXiv 2111.06377); written by mae_jax.

```python
{usage}
```

| | |
|---|---|
{rows}

License of the weights: {_license(license)}
"""


def _task(model: Weights) -> str:
    """The hub's task category."""
    classifier = model.fields.get("num_classes", 0) > 0
    return "image-classification" if classifier else "image-feature-extraction"


def _title(model: Weights) -> str:
    fields = model.fields
    what = "masked autoencoder" if model.kind == "mae" else "encoder"
    if fields.get("num_classes"):
        what = f"classifier of {fields['num_classes']} classes"
    size = model.metadata["model"]["size"]
    return f"ViT-{size}/{fields['patch_size'][0]}: {what}"


def _facts(model: Weights) -> dict[str, Any]:
    """Facts about the weights; unknown ones are omitted."""
    metadata, fields = model.metadata, model.fields
    origin, target = metadata.get("provenance", {}), metadata.get("target", {})
    source = metadata["data"]["source"]
    facts = {
        "image size": "x".join(map(str, fields["image_size"])),
        "patch size": "x".join(map(str, fields["patch_size"])),
        "channels": fields["channels"],
        "encoder": f"{fields['depth']} blocks, width {fields['embed_dim']}, "
        f"{fields['num_heads']} heads",
        "target of pre-training": targets.describe(target) if target else None,
        "mean, deviation": f"{metadata['data']['mean']}, {metadata['data']['std']}",
        "data": source.get("name") or source.get("kind"),
        "steps": metadata.get("step") or None,
        "epochs": metadata.get("epochs_seen"),
        "made from": origin.get("file"),
        "MD5": origin.get("md5"),
        "released as": origin.get("released"),
        "began with": origin.get("began_with"),
    }
    return {name: value for name, value in facts.items() if value not in (None, "unknown")}


def _license(license: str) -> str:
    if license == UNKNOWN:
        return (
            "not stated. Weights inherit the terms of the training data and of the weights they "
            "were initialized from."
        )
    return f"{license}."
