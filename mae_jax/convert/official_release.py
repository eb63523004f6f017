"""The weights released by the authors of the paper, and their license.

Facts from the official repository's README and issues 3, 8 and 9 (facebookresearch/mae).
"""

import hashlib
import os
import re
from typing import Any

LICENSE = "cc-by-nc-4.0"
UNKNOWN = "unknown"
# Prefix of the MD5 sum, where documented.
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
    """Origin of weights: file, MD5, license, and the released file they match, if any.

    A released file is recognized by its MD5 sum, whatever its name; if the sum is not documented,
    by its name and the model size.

    Args:
      path: file, or folder of a library.
      size: size of the encoder: B, L, H or another.
      license: license stated by the file.
    """
    name = os.path.basename(os.path.abspath(path))
    origin: dict[str, Any] = {"file": name, "license": license or UNKNOWN}
    if not os.path.isfile(path):
        return origin
    with open(path, "rb") as file:
        origin["md5"] = hashlib.file_digest(file, "md5").hexdigest()
    official = next((n for n, md5 in _MD5.items() if origin["md5"].startswith(md5)), None)
    by_name = _NAME.fullmatch(os.path.splitext(name)[0])
    if by_name and by_name[0] not in _MD5 and by_name[2][0].upper() == size:
        official = by_name[0]
    if official:
        origin |= {"released": official, "license": license or LICENSE}
    return origin


def normalized_target(path: str) -> bool | None:
    """Whether a released file's target was normalized pixels; None if the name is unknown."""
    official = _NAME.fullmatch(os.path.splitext(os.path.basename(path))[0])
    return None if official is None else official[1] != "visualize"
