"""Vision Transformer sizes, in one table."""

from typing import NamedTuple


class Size(NamedTuple):
    """Encoder width, blocks, heads and the patch the paper uses with it."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int


# B, L, H: Dosovitskiy et al. (2010.11929) table 1. Ti, S: Touvron et al. (2012.12877) table 1.
SIZES = {
    "Ti": Size(192, 12, 3, 16),
    "S": Size(384, 12, 6, 16),
    "B": Size(768, 12, 12, 16),
    "L": Size(1024, 24, 16, 16),
    "H": Size(1280, 32, 16, 14),
}
