"""Vision Transformer sizes, in one table."""

from typing import NamedTuple


class Size(NamedTuple):
    """Encoder width, blocks and heads."""

    embed_dim: int
    depth: int
    num_heads: int


# B, L, H: Dosovitskiy et al. (2010.11929) table 1. Ti, S: Touvron et al. (2012.12877) table 1.
SIZES = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}
