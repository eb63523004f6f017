"""Transformer blocks shared by encoder, decoder and classifier.

Parameters are float32; `dtype` is the type of the arithmetic. LayerNorm statistics and attention
weights are always computed in float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any
LN_EPS = 1e-6


def layer_norm(dtype: Dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with the official epsilon."""
    # Linen's default variance E[x^2] - E[x]^2 loses digits that the official two-pass one keeps.
    return nn.LayerNorm(epsilon=LN_EPS, use_fast_variance=False, dtype=dtype, name=name)


def dense(features: int, dtype: Dtype, name: str | None = None) -> nn.Dense:
    """Linear layer with the official initialisation: Xavier uniform, zero bias."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


class QKV(nn.Module):
    """The fused projection to queries, keys and values: one [D, 3D] matrix, columns q, k, v.

    Fused, because Xavier initialisation depends on the shape of the whole matrix.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, num_queries: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, N, D] -> q [B, num_queries, D] of the last tokens, k and v [B, N, D]."""
        dim = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (dim, 3 * dim))
        bias = self.param("bias", nn.initializers.zeros_init(), (3 * dim,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if num_queries == x.shape[1]:
            q, k, v = jnp.split(x @ kernel + bias, 3, axis=-1)
        else:
            q = x[:, -num_queries:] @ kernel[:, :dim] + bias[:dim]
            k, v = jnp.split(x @ kernel[:, dim:] + bias[dim:], 2, axis=-1)
        return q, k, v


class Attention(nn.Module):
    """Multi-head self-attention; optionally only the last tokens ask, while all are looked at."""

    num_heads: int
    dtype: Dtype
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, num_queries: int) -> jax.Array:
        """x [B, N, D] -> [B, num_queries, D]."""
        batch, _, dim = x.shape
        heads = (self.num_heads, dim // self.num_heads)
        q, k, v = (
            y.reshape(batch, -1, *heads) for y in QKV(self.dtype, name="qkv")(x, num_queries)
        )
        x = jax.nn.dot_product_attention(q, k, v, implementation=self.implementation)  # type: ignore[arg-type]
        return dense(dim, self.dtype, "proj")(x.reshape(batch, num_queries, dim))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    hidden_dim: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = dense(self.hidden_dim, self.dtype, "fc1")(x)
        y = jax.nn.gelu(y, approximate=False)
        return dense(x.shape[-1], self.dtype, "fc2")(y)


class Block(nn.Module):
    """Pre-norm Transformer block (timm's `Block`)."""

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, num_queries: int | None = None) -> jax.Array:
        """x [B, N, D] -> [B, num_queries, D]: the last `num_queries` tokens (default all)."""
        dim = x.shape[-1]
        n = x.shape[1] if num_queries is None else num_queries
        attn = Attention(self.num_heads, self.dtype, self.attention, name="attn")
        x = x[:, -n:] + attn(layer_norm(self.dtype, "norm1")(x), n)
        mlp = Mlp(int(dim * self.mlp_ratio), self.dtype, name="mlp")
        return x + mlp(layer_norm(self.dtype, "norm2")(x))


def _patch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for a convolution, which the official code leaves untouched."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _patch_kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
    """Xavier uniform on the kernel seen as a [ph*pw*C, D] matrix."""
    flat = (shape[0] * shape[1] * shape[2], shape[3])
    return nn.initializers.xavier_uniform()(key, flat, dtype).reshape(shape)


class PatchProjection(nn.Module):
    """The patch convolution as a matrix product, so that patches can be picked before it."""

    dim: int
    patch_size: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """patches [B, K, ph*pw*C] -> [B, K, D]."""
        fan_in = patches.shape[-1]
        channels = fan_in // (self.patch_size[0] * self.patch_size[1])
        shape = (*self.patch_size, channels, self.dim)  # a convolution's kernel: shows its meaning
        kernel = self.param("kernel", _patch_kernel_init, shape).reshape(fan_in, self.dim)
        bias = self.param("bias", _patch_bias_init(fan_in), (self.dim,))
        return patches.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    """Patch vectors to tokens (timm's `PatchEmbed`, parameters under `proj`)."""

    dim: int
    patch_size: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        return PatchProjection(self.dim, self.patch_size, self.dtype, name="proj")(patches)
