"""The weights that the paper's authors released, and what their licence is.

Facts from the official repository's README and issues 3, 8 and 9 (facebookresearch/mae).
"""

import hashlib
import os
import re
from typing import Any

LICENSE = "cc-by-nc-4.0"
UNKNOWN = "unknown"
# Beginning of the MD5 sum, where the official documents give it.
_MD5 = {
    "mae_pretrain_vit_base": "8cad7c",
    "mae_pretrain_vit_large": "b8b06e",
    "mae_pretrain_vit_huge": "9bdbb0",
    "mae_finetuned_vit_base": "1b25e9",
    "mae_finetuned_vit_large": "51f550",
    "mae_finetuned_vit_huge": "2541f2",
}
_NAME = re.compile(
    r"mae_(pretrain|visualize|finetuned)_vit_(base|large|huge)(_full|_ganloss|_p14to16)?"
)


def provenance(path: str, *, license: str = "") -> dict[str, Any]:
    """Where weights come from: file, MD5, licence, and the released file they are, if one.

    A name alone proves nothing: where the sum is known it decides.

    Args:
      path: file, or folder of a library.
      license: what the file itself says.
    """
    name = os.path.basename(os.path.abspath(path))
    found: dict[str, Any] = {"file": name, "license": license or UNKNOWN}
    if not os.path.isfile(path):
        return found
    with open(path, "rb") as file:
        found["md5"] = hashlib.file_digest(file, "md5").hexdigest()
    official = _NAME.fullmatch(os.path.splitext(name)[0])
    if official and found["md5"].startswith(_MD5.get(official[0], "")):
        found |= {"released": official[0], "license": license or LICENSE}
    return found


def normalized_target(name: str) -> bool | None:
    """Whether a released file's target were normalised pixels; None when the name does not tell."""
    official = _NAME.search(name)
    if official is None:
        return None
    return official[1] != "visualize"
