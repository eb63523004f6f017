"""Transformer layers shared by encoder, decoder and classifier.

Parameters are float32; `dtype` is the dtype of the arithmetic. LayerNorm statistics and attention
weights are always computed in float32.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.ops import activations
from mae_jax.ops.attention import attention

Dtype = Any
Initializer = nn.initializers.Initializer
LN_EPS = 1e-6
# Initialization of linear layers: the autoencoder's (paper A.1), and timm's for classifiers.
XAVIER = nn.initializers.xavier_uniform()
NORMAL = nn.initializers.normal(0.02)
# `model.attention`: implementations of softmax(q k^T / sqrt(d)) v.
ATTENTION = {
    "xla": attention,
    "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
}


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with the official code's epsilon, computed in float32."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        y: jax.Array = activations.layer_norm(x, scale, bias, LN_EPS)
        return y.astype(self.dtype)


def layer_norm(dtype: Dtype, name: str | None = None) -> LayerNorm:
    """LayerNorm with output of dtype `dtype`."""
    return LayerNorm(dtype, name=name)


def dense(
    features: int, dtype: Dtype, name: str | None = None, kernel_init: Initializer = XAVIER
) -> nn.Dense:
    """Linear layer with zero-initialized bias and, by default, Xavier-uniform kernel."""
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, name=name)


class QKV(nn.Module):
    """Fused projection to queries, keys and values: one [D, 3D] matrix with columns q, k, v.

    Xavier initialization depends on the shape of the whole matrix, so it must stay fused.
    """

    dtype: Dtype
    kernel_init: Initializer = XAVIER

    @nn.compact
    def __call__(self, x: jax.Array, num_queries: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, N, D] -> q [B, num_queries, D] of the last tokens, k and v [B, N, D]."""
        dim = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (dim, 3 * dim))
        bias = self.param("bias", nn.initializers.zeros_init(), (3 * dim,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if num_queries == x.shape[1]:
            q, k, v = jnp.split(x @ kernel + bias, 3, axis=-1)
        else:
            q = x[:, -num_queries:] @ kernel[:, :dim] + bias[:dim]
            k, v = jnp.split(x @ kernel[:, dim:] + bias[dim:], 2, axis=-1)
        return q, k, v


class Attention(nn.Module):
    """Multi-head self-attention, optionally with only the last tokens as queries."""

    num_heads: int
    dtype: Dtype
    implementation: str = "xla"
    kernel_init: Initializer = XAVIER

    @nn.compact
    def __call__(self, x: jax.Array, num_queries: int) -> jax.Array:
        """x [B, N, D] -> [B, num_queries, D]."""
        batch, _, dim = x.shape
        heads = (self.num_heads, dim // self.num_heads)
        qkv = QKV(self.dtype, self.kernel_init, name="qkv")
        q, k, v = (y.reshape(batch, -1, *heads) for y in qkv(x, num_queries))
        x = ATTENTION[self.implementation](q, k, v)
        return dense(dim, self.dtype, "proj", self.kernel_init)(x.reshape(batch, num_queries, dim))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU in between."""

    hidden_dim: int
    dtype: Dtype
    kernel_init: Initializer = XAVIER

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = activations.gelu(dense(self.hidden_dim, self.dtype, "fc1", self.kernel_init)(x))
        return dense(x.shape[-1], self.dtype, "fc2", self.kernel_init)(y)


def drop_path(x: jax.Array, rate: float, noise: jax.Array) -> jax.Array:
    """Stochastic depth: drops a residual branch for some examples (timm's `DropPath`).

    Args:
      x: output of the branch, [B, ...].
      rate: probability of dropping.
      noise: uniform in [0, 1), [B], one value per example.

    Returns:
      The shape of x; kept branches are scaled by 1 / (1 - rate).
    """
    keep = jnp.floor(1.0 - rate + noise).astype(x.dtype)
    return x / (1.0 - rate) * keep.reshape(-1, *(1 for _ in x.shape[1:]))


class Block(nn.Module):
    """Pre-norm Transformer block (timm's `Block`)."""

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    attention: str = "xla"
    kernel_init: Initializer = XAVIER
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, num_queries: int | None = None, noise: jax.Array | None = None
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: tokens [B, N, D].
          num_queries: compute only the last `num_queries` tokens; None for all.
          noise: uniform [B, 2] for dropping the two branches at the rate `drop_path`; None, as in
            evaluation, drops nothing.

        Returns:
          [B, num_queries, D].
        """
        dim = x.shape[-1]
        n = x.shape[1] if num_queries is None else num_queries

        def branch(y: jax.Array, which: int) -> jax.Array:
            return y if noise is None else drop_path(y, self.drop_path, noise[:, which])

        x = x[:, -n:] + branch(self.attend(layer_norm(self.dtype, "norm1")(x), n), 0)
        mlp = Mlp(int(dim * self.mlp_ratio), self.dtype, self.kernel_init, name="mlp")
        return x + branch(mlp(layer_norm(self.dtype, "norm2")(x)), 1)

    def attend(self, x: jax.Array, num_queries: int) -> jax.Array:
        """Attention of the normalized tokens [B, N, D] -> [B, num_queries, D]."""
        attn = Attention(self.num_heads, self.dtype, self.attention, self.kernel_init, name="attn")
        return attn(x, num_queries)


# `model.remat`: activations of a block kept for its backward pass; the rest is recomputed.
REMAT = {
    "none": None,  # everything that the backward pass reads
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of linear layers
    "blocks": jax.checkpoint_policies.nothing_saveable,  # only the block's input
}


def block_class(remat: str, block: type[Block] = Block) -> Any:
    """A class of blocks with the rematerialization policy `remat`, a key of `REMAT`."""
    if remat == "none":
        return block
    return nn.remat(block, policy=REMAT[remat], static_argnums=(2,))  # 2: num_queries


def torch_default(fan_in: int) -> Initializer:
    """PyTorch's default for a convolution's weight and bias: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _xavier_patch_kernel(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
    """Xavier uniform on the kernel seen as a [ph*pw*C, D] matrix."""
    flat = (shape[0] * shape[1] * shape[2], shape[3])
    return XAVIER(key, flat, dtype).reshape(shape)


class PatchProjection(nn.Module):
    """The patch convolution as a matrix product, so that patches can be selected before it.

    The official autoencoder initializes the kernel as a matrix (`xavier`). The official classifier
    keeps PyTorch's default, as both do for the bias.
    """

    dim: int
    patch_size: tuple[int, int]
    dtype: Dtype
    xavier: bool = True

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """patches [B, K, ph*pw*C] -> [B, K, D]."""
        fan_in = patches.shape[-1]
        channels = fan_in // (self.patch_size[0] * self.patch_size[1])
        shape = (*self.patch_size, channels, self.dim)  # stored as a convolution kernel
        torch = torch_default(fan_in)
        kernel = self.param("kernel", _xavier_patch_kernel if self.xavier else torch, shape)
        kernel = kernel.reshape(fan_in, self.dim)
        bias = self.param("bias", torch, (self.dim,))
        return patches.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    """Patch vectors to tokens (timm's `PatchEmbed`; parameters under `proj`)."""

    dim: int
    patch_size: tuple[int, int]
    dtype: Dtype
    xavier: bool = True

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        project = PatchProjection(self.dim, self.patch_size, self.dtype, self.xavier, name="proj")
        return project(patches)
