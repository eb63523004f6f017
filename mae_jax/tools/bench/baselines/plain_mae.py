"""The masked autoencoder step by step as in the paper, without any shortcut.

Embed all patches, add positions, shuffle, drop, encode, append mask tokens, unshuffle, add
positions, decode, predict all patches, average over the masked ones: plain jax.numpy and JAX
gradients, on the same parameters. It shares no code with the model. Tests compare the model with
it, and the benchmark compares their speed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models.mae import MaskedAutoencoder


def position_table(dim: int, grid: tuple[int, int]) -> jax.Array:
    """float32 [1 + L, dim], zeros for the class token: the formula of the paper's code."""
    quarter = dim // 4
    table = np.zeros((1 + grid[0] * grid[1], dim))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for k in range(quarter):
                omega = 10000 ** (-k / quarter)
                entry = table[1 + row * grid[1] + column]
                entry[k], entry[quarter + k] = np.sin(column * omega), np.cos(column * omega)
                entry[2 * quarter + k] = np.sin(row * omega)
                entry[3 * quarter + k] = np.cos(row * omega)
    return jnp.asarray(table, jnp.float32)


def _norm(p: Any, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    centered = wide - wide.mean(-1, keepdims=True)
    std = jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return (centered / std * p["scale"] + p["bias"]).astype(x.dtype)


def _linear(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"].astype(x.dtype) + p["bias"].astype(x.dtype)


def _block(p: Any, x: jax.Array, heads: int) -> jax.Array:
    b, n, d = x.shape
    qkv = _linear(p["attn"]["qkv"], _norm(p["norm1"], x)).reshape(b, n, 3, heads, d // heads)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    scores = (q @ k.swapaxes(2, 3)).astype(jnp.float32) * (d // heads) ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    x = x + _linear(p["attn"]["proj"], (weights @ v).transpose(0, 2, 1, 3).reshape(b, n, d))
    y = _linear(p["mlp"]["fc1"], _norm(p["norm2"], x))
    y = y * 0.5 * (1 + jax.scipy.special.erf(y / np.sqrt(2).astype(y.dtype)))
    return x + _linear(p["mlp"]["fc2"], y)


def _stack(params: Any, name: str) -> list[Any]:
    return [params[f"{name}_{i}"] for i in range(sum(key.startswith(f"{name}_") for key in params))]


def _pick(x: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, ids[:, :, None], axis=1)


def forward(
    params: Any,
    images: jax.Array,
    noise: jax.Array,
    *,
    model: MaskedAutoencoder,
    ratio: float,
    normalize: bool,
    loss_on_all: bool = False,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The paper's loss, with the prediction and mask.

    Args:
      params: of `model`.
      images: normalized float32 [B, H, W, C].
      noise: [B, L]; the patches with the lowest noise stay visible.
      model: the autoencoder; only its sizes are used.
      ratio: fraction of patches that are removed.
      normalize: normalize each target patch by its own mean and standard deviation.
      loss_on_all: compute the loss on visible patches too.
      dtype: of the arithmetic; norms, softmax and loss are float32.

    Returns:
      Loss, prediction [B, L, P] in image order, mask [B, L].
    """
    (ph, pw), (gh, gw) = model.patch_size, model.grid
    b, length = images.shape[0], gh * gw
    # The convolution of the official code.
    x = jax.lax.conv_general_dilated(
        images.astype(dtype),
        params["patch_embed"]["proj"]["kernel"].astype(dtype),
        (ph, pw),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = x.reshape(b, length, -1) + params["patch_embed"]["proj"]["bias"].astype(dtype)
    x = x + position_table(model.embed_dim, model.grid)[1:].astype(dtype)
    keep = int(length * (1 - ratio))
    shuffle = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(shuffle, axis=1)
    mask = (restore >= keep).astype(jnp.float32)
    if model.encoder_mask_tokens:  # table 1c: nothing is dropped
        table = position_table(model.embed_dim, model.grid)[1:].astype(dtype)
        hidden = params["encoder_mask_token"].astype(dtype) + table
        x = jnp.where(mask[:, :, None] > 0, hidden, x)
    else:
        x = _pick(x, shuffle[:, :keep])
    x = jnp.concatenate([jnp.tile(params["cls_token"].astype(dtype), (b, 1, 1)), x], axis=1)
    for p in _stack(params, "blocks"):
        x = _block(p, x, model.num_heads)
    x = _linear(params["decoder_embed"], _norm(params["norm"], x))
    if not model.encoder_mask_tokens:
        tokens = jnp.tile(params["mask_token"].astype(dtype), (b, length - keep, 1))
        patches = _pick(jnp.concatenate([x[:, 1:], tokens], axis=1), restore)
        x = jnp.concatenate([x[:, :1], patches], axis=1)
    x = x + position_table(model.decoder_embed_dim, model.grid).astype(dtype)
    for p in _stack(params, "decoder_blocks"):
        x = _block(p, x, model.decoder_num_heads)
    pred = _linear(params["decoder_pred"], _norm(params["decoder_norm"], x))[:, 1:]
    pred = pred.astype(jnp.float32)
    target = images.reshape(b, gh, ph, gw, pw, -1).transpose(0, 1, 3, 2, 4, 5)
    target = target.reshape(b, length, -1)
    if normalize:
        centered = target - target.mean(-1, keepdims=True)
        variance = (centered**2).sum(-1, keepdims=True) / (target.shape[-1] - 1)
        target = centered / jnp.sqrt(variance + 1e-6)
    weights = jnp.ones_like(mask) if loss_on_all else mask
    loss = (((pred - target) ** 2).mean(-1) * weights).sum() / weights.sum()
    return loss, pred, mask
