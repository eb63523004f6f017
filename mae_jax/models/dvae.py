"""The discrete variational autoencoder of DALL-E: images as grids of discrete codes.

Ramesh et al., 2102.12092, section 2.1 and appendix A; layers and names as in the published
dall_e.Encoder and dall_e.Decoder, so that their weights fit (`convert.tokenizer`). Images are in
[0, 1].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models.layers import Dtype
from mae_jax.ops.patches import grid_size
from mae_jax.ops.trees import flatten

# Sizes of a tokenizer and their upper limits, which files are checked against before it is built.
SIZES = {
    "channels": 1024,
    "vocab_size": 2**16,
    "hidden_dim": 2**12,
    "groups": 8,
    "blocks_per_group": 32,
    "init_dim": 2**14,
}
EPS = 0.1  # pixels are mapped into [EPS, 1 - EPS], where their logits are finite
_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def map_pixels(images: jax.Array) -> jax.Array:
    """[0, 1] -> [0.1, 0.9]."""
    return (1 - 2 * EPS) * images + EPS


def unmap_pixels(images: jax.Array) -> jax.Array:
    """Inverse of `map_pixels`, clipped to [0, 1]."""
    return jnp.clip((images - EPS) / (1 - 2 * EPS), 0, 1)


def _conv(width: int, size: int, dtype: Dtype, name: str) -> nn.Conv:
    return nn.Conv(width, (size, size), padding="SAME", dtype=dtype, kernel_init=_INIT, name=name)


class Block(nn.Module):
    """Residual block: x + gain * (four convolutions of x, each preceded by a ReLU).

    The first three convolutions have a quarter of the width.

    Attributes:
      width: output channels.
      kernels: sizes of the four square kernels.
      gain: factor on the residual branch.
    """

    width: int
    kernels: tuple[int, int, int, int]
    gain: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        same = x.shape[-1] == self.width
        identity = x if same else _conv(self.width, 1, self.dtype, "id_path")(x)
        widths = (self.width // 4,) * 3 + (self.width,)
        for i, (width, size) in enumerate(zip(widths, self.kernels, strict=True), 1):
            x = _conv(width, size, self.dtype, f"conv_{i}")(nn.relu(x))
        return identity + self.gain * x


class Group(nn.Module):
    """Blocks `block_1`, `block_2`, ... of one width; see `Block`."""

    width: int
    blocks: int
    kernels: tuple[int, int, int, int]
    gain: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(1, self.blocks + 1):
            block = Block(self.width, self.kernels, self.gain, self.dtype, name=f"block_{i}")
            x = block(x)
        return x


class Encoder(nn.Module):
    """Mapped images [B, H, W, C] to logits of codes, float32 [B, H / F, W / F, vocab_size]."""

    vocab_size: int
    hidden_dim: int
    groups: int
    blocks_per_group: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        blocks, gain = self.blocks_per_group, _gain(self.groups, self.blocks_per_group)
        x = _conv(self.hidden_dim, 7, self.dtype, "input")(x)
        for i in range(1, self.groups + 1):
            width = self.hidden_dim * 2 ** (i - 1)
            x = Group(width, blocks, (3, 3, 3, 1), gain, self.dtype, name=f"group_{i}")(x)
            if i < self.groups:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return _conv(self.vocab_size, 1, jnp.float32, "output")(nn.relu(x))


class Decoder(nn.Module):
    """Codes [B, h, w, vocab_size], one-hot or soft, to float32 [B, h * F, w * F, 2 C].

    The first C channels are logits of the mapped pixels, the others their log scales.
    """

    channels: int
    hidden_dim: int
    groups: int
    blocks_per_group: int
    init_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        blocks, gain = self.blocks_per_group, _gain(self.groups, self.blocks_per_group)
        x = _conv(self.init_dim, 1, jnp.float32, "input")(x).astype(self.dtype)
        for i in range(1, self.groups + 1):
            width = self.hidden_dim * 2 ** (self.groups - i)
            x = Group(width, blocks, (1, 3, 3, 3), gain, self.dtype, name=f"group_{i}")(x)
            if i < self.groups:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
        return _conv(2 * self.channels, 1, self.dtype, "output")(nn.relu(x)).astype(jnp.float32)


class DiscreteVAE(nn.Module):
    """Encoder and decoder; images are [B, H, W, C] in [0, 1].

    Attributes:
      image_size: (H, W) in training; any size divisible by F works.
      channels: C.
      vocab_size: number of codes.
      hidden_dim: width of the first group; a multiple of 4. It doubles from group to group.
      groups: number of groups. The image is halved between groups, so one code covers F x F pixels
        with F = 2^(groups - 1).
      blocks_per_group: residual blocks in each group.
      init_dim: width of the decoder's first layer.
      dtype: of the arithmetic; parameters and logits are float32.
    """

    image_size: tuple[int, int]
    channels: int = 3
    vocab_size: int = 8192
    hidden_dim: int = 256
    groups: int = 4
    blocks_per_group: int = 2
    init_dim: int = 128
    dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        """F, the side in pixels of the square that one code covers."""
        return 2 ** (self.groups - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Codes (rows, columns) of an image."""
        return grid_size(self.image_size, (self.factor, self.factor))

    def setup(self):
        sizes = (self.hidden_dim, self.groups, self.blocks_per_group)
        self.encoder = Encoder(self.vocab_size, *sizes, self.dtype)
        self.decoder = Decoder(self.channels, *sizes, self.init_dim, self.dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstruction from soft codes, [B, H, W, C] in [0, 1]; touches every parameter."""
        return self.decode(nn.softmax(self.logits(images)))

    def logits(self, images: jax.Array) -> jax.Array:
        """Logits of the codes, float32 [B, h, w, vocab_size]."""
        return self.encoder(map_pixels(images))

    def codes(self, images: jax.Array) -> jax.Array:
        """The most likely codes, int32 [B, h, w]."""
        return self.logits(images).argmax(axis=-1).astype(jnp.int32)

    def statistics(self, weights: jax.Array) -> jax.Array:
        """Pixel logits and log scales, float32 [B, H, W, 2 C], of codes [B, h, w, vocab_size]."""
        return self.decoder(weights)

    def decode(self, weights: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [0, 1] of codes float32 [B, h, w, vocab_size], one-hot or soft."""
        return pixels(self.statistics(weights))

    def decode_codes(self, codes: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [0, 1] of codes int32 [B, h, w]."""
        return self.decode(nn.one_hot(codes, self.vocab_size))


def pixels(statistics: jax.Array) -> jax.Array:
    """Images [..., C] in [0, 1] of the decoder's output [..., 2 C]."""
    return unmap_pixels(nn.sigmoid(statistics[..., : statistics.shape[-1] // 2]))


def logit_laplace_loss(images: jax.Array, statistics: jax.Array) -> jax.Array:
    """Negative log-likelihood of each value of `images` [..., C] in [0, 1], float32 [..., C].

    The logit of a mapped pixel has a Laplace distribution (2102.12092, appendix A.3); `statistics`
    [..., 2 C] come from the decoder.
    """
    x = map_pixels(images)
    mean, log_scale = jnp.split(statistics, 2, axis=-1)
    distance = jnp.abs(jnp.log(x) - jnp.log1p(-x) - mean)
    return distance * jnp.exp(-log_scale) + log_scale + jnp.log(2 * x * (1 - x))


def init_params(model: DiscreteVAE, key: jax.Array) -> Any:
    """Initial parameters."""
    images = jnp.zeros((1, model.factor, model.factor, model.channels))
    return model.init(key, images)["params"]


def check_sizes(sizes: dict[str, Any]) -> dict[str, int]:
    """Returns the `DiscreteVAE` arguments `sizes` after checking them: files are not trusted.

    Raises:
      ValueError: a size is missing, of the wrong type or out of range.
    """
    for key, largest in SIZES.items():
        value = sizes.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            raise ValueError(f"no tokenizer can have {key} {str(value)[:20]} (1 to {largest})")
    if sizes["hidden_dim"] % 4:
        raise ValueError(f"hidden_dim {sizes['hidden_dim']} of a tokenizer is not a multiple of 4")
    return sizes


def part_shapes(model: DiscreteVAE, parts: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, by name, of the parameters of `parts`: "encoder", "decoder" or both."""
    shapes = flatten(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    return {name: x for name, x in shapes.items() if name.split("/")[0] in parts}


def forward_macs(model: DiscreteVAE) -> int:
    """Multiply-adds of encoding and decoding one image."""
    height, width = model.image_size
    macs = 0
    for name, x in part_shapes(model, ("encoder", "decoder")).items():
        if name.endswith("kernel"):
            halvings = _halvings(*name.split("/")[:2], groups=model.groups)
            macs += x.size * (height >> halvings) * (width >> halvings)
    return macs


def _gain(groups: int, blocks_per_group: int) -> float:
    return 1 / (groups * blocks_per_group) ** 2


def _halvings(part: str, layer: str, groups: int) -> int:
    """How often the image has been halved at a layer."""
    number = {"input": 1, "output": groups}.get(layer) or int(layer.removeprefix("group_"))
    return number - 1 if part == "encoder" else groups - number
