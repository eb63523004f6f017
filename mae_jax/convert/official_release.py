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


def provenance(path: str, *, size: str, license: str = "") -> dict[str, Any]:
    """Where weights come from: file, MD5, licence, and the released file they are, if one.

    A file is known by its sum, whatever its name; those whose sum is not documented by name and
    size together.

    Args:
      path: file, or folder of a library.
      size: of the encoder: B, L, H or another.
      license: what the file itself says.
    """
    name = os.path.basename(os.path.abspath(path))
    found: dict[str, Any] = {"file": name, "license": license or UNKNOWN}
    if not os.path.isfile(path):
        return found
    with open(path, "rb") as file:
        found["md5"] = hashlib.file_digest(file, "md5").hexdigest()
    official = next((n for n, md5 in _MD5.items() if found["md5"].startswith(md5)), None)
    by_name = _NAME.fullmatch(os.path.splitext(name)[0])
    if by_name and by_name[0] not in _MD5 and by_name[2][0].upper() == size:
        official = by_name[0]
    if official:
        found |= {"released": official, "license": license or LICENSE}
    return found


def normalized_target(path: str) -> bool | None:
    """Whether a released file's target were normalised pixels; None when the name does not tell."""
    official = _NAME.fullmatch(os.path.splitext(os.path.basename(path))[0])
    return None if official is None else official[1] != "visualize"
