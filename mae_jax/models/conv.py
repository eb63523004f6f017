"""Convolutions and norms of feature pyramids and dense heads, on maps [B, H, W, C].

Parameters are float32; `dtype` is the dtype of the arithmetic. Statistics of norms are always
computed in float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import layers
from mae_jax.models.layers import Dtype, Initializer

NORM_EPS = 1e-5  # of BatchNorm and GroupNorm
BATCH_NORM_MOMENTUM = 0.1
GROUPS = 32
# Kaiming normal for ReLU by the number of outputs ("MSRA fill" in detectron2).
MSRA = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Kaiming uniform without a gain, by the number of inputs ("Xavier fill" in detectron2).
XAVIER = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Conv(nn.Module):
    """Convolution with stride 1 that keeps the size of the map.

    Attributes:
      features: output channels.
      size: of the square kernel; odd.
      dtype: of the arithmetic.
      bias: add a bias.
      kernel_init: of the kernel, with biases 0; None is PyTorch's default for both.
    """

    features: int
    size: int
    dtype: Dtype
    bias: bool = True
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, features]."""
        torch = layers.torch_default(x.shape[-1] * self.size**2)
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or torch, shape)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if not self.bias:
            return y
        return y + _bias(self, self.features, torch if self.kernel_init is None else None)


class Deconv2x2(nn.Module):
    """Transposed convolution 2 x 2 with stride 2: doubles the size of the map.

    A linear map followed by depth-to-space. The kernel [2, 2, C, features] is not flipped: entry
    (a, b) writes pixel (2 i + a, 2 j + b).

    Attributes:
      features: output channels.
      dtype: of the arithmetic.
      kernel_init: of the kernel, with biases 0; None is PyTorch's default for both.
    """

    features: int
    dtype: Dtype
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, 2 H, 2 W, features]."""
        torch = layers.torch_default(4 * self.features)  # PyTorch counts the outputs here
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or torch, shape)
        y = jnp.einsum("bhwi,acio->bhawco", x.astype(self.dtype), kernel.astype(self.dtype))
        y = y.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], self.features)
        return y + _bias(self, self.features, torch if self.kernel_init is None else None)


def _bias(module: Conv | Deconv2x2, features: int, init: Initializer | None) -> jax.Array:
    bias = module.param("bias", init or nn.initializers.zeros_init(), (features,))
    return bias.astype(module.dtype)


class BatchNorm(nn.Module):
    """BatchNorm over all positions of the whole batch, however it is sharded.

    Running statistics are in the collection `batch_stats`. As in PyTorch, the running variance is
    the unbiased one.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, valid: jax.Array | None = None) -> jax.Array:
        """Normalizes a map.

        Args:
          x: [B, ..., C].
          train: use, and keep, the statistics of the batch instead of the running ones.
          valid: bool [B]; other examples do not enter the statistics. None: all are valid.

        Returns:
          The shape of x, in `dtype`.
        """
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        wide = x.astype(jnp.float32)
        now_mean, now_var = mean.value, var.value
        if train:
            now_mean, now_var, count = _moments(wide, valid)
            if not self.is_initializing():
                unbiased = now_var * count / jnp.maximum(count - 1, 1)
                rate = jnp.where(count > 0, BATCH_NORM_MOMENTUM, 0.0)
                mean.value += rate * (now_mean - mean.value)
                var.value += rate * (unbiased - var.value)
        y = (wide - now_mean) * jax.lax.rsqrt(now_var + NORM_EPS) * scale + bias
        return y.astype(self.dtype)


def _moments(x: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean [C] and biased variance [C] of the valid examples, and the number of positions."""
    axes = tuple(range(x.ndim - 1))
    valid = jnp.ones(x.shape[0], bool) if valid is None else valid
    weights = valid.astype(x.dtype).reshape(-1, *(1 for _ in x.shape[1:]))
    count = weights.sum() * (x[0].size // x.shape[-1])
    mean = (x * weights).sum(axes) / jnp.maximum(count, 1)
    var = (jnp.square(x - mean) * weights).sum(axes) / jnp.maximum(count, 1)
    return mean, var, count


def norm(
    kind: str,
    x: jax.Array,
    *,
    dtype: Dtype,
    name: str,
    train: bool = False,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Applies a norm, as a submodule `name` of the calling module, to a map x [B, H, W, C].

    Args:
      kind: "layer" (over the channels of each position), "group" (32 groups) or "batch".
      x: the map.
      dtype: of the result.
      name: of the submodule.
      train, valid: for "batch"; see `BatchNorm`.

    Raises:
      ValueError: `kind` is none of these.
    """
    if kind == "layer":
        return layers.layer_norm(dtype, name)(x)
    if kind == "group":
        group = nn.GroupNorm(
            GROUPS, epsilon=NORM_EPS, dtype=jnp.float32, use_fast_variance=False, name=name
        )
        return group(x).astype(dtype)
    if kind == "batch":
        return BatchNorm(dtype, name=name)(x, train, valid)
    raise ValueError(f"no norm {kind!r}: layer, group or batch")


class ConvNorm(nn.Module):
    """Convolution without bias, `conv`, then a norm, `norm`, and optionally a ReLU.

    Attributes:
      features, size, dtype, kernel_init: see `Conv`.
      kind: of the norm; see `norm`.
      relu: apply a ReLU.
    """

    features: int
    size: int
    dtype: Dtype
    kind: str = "layer"
    relu: bool = False
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, features]; `train` as in `BatchNorm`."""
        layer = Conv(self.features, self.size, self.dtype, False, self.kernel_init, name="conv")
        x = norm(self.kind, layer(x), dtype=self.dtype, name="norm", train=train)
        return nn.relu(x) if self.relu else x


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 with stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C]."""
    return nn.max_pool(x, (2, 2), (2, 2))


def upsample(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Doubles a map by nearest neighbor; repeats the last row or column where `size` is odd.

    Args:
      x: [B, H, W, C].
      size: 2 H or 2 H + 1, and 2 W or 2 W + 1.

    Returns:
      [B, *size, C].
    """
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    more = ((0, 0), (0, size[0] - x.shape[1]), (0, size[1] - x.shape[2]), (0, 0))
    return jnp.pad(x, more, mode="edge")
