"""The masked autoencoder step by step as the paper tells it, without any short cut.

Embed all patches, add positions, shuffle, drop, encode, append mask tokens, unshuffle, add
positions, decode and predict everything, average over the masked patches. Plain jax.numpy on
the same parameters; shares no code with the model.
"""

import jax
import jax.numpy as jnp
import numpy as np


def position_table(dim, grid):
    """One row per patch, by the formula of the paper's code, entry by entry."""
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


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def block(p, x, heads):
    b, n, d = x.shape
    qkv = linear(p["attn"]["qkv"], norm(p["norm1"], x)).reshape(b, n, 3, heads, d // heads)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    weights = jax.nn.softmax(q @ k.swapaxes(2, 3) * (d // heads) ** -0.5, axis=-1)
    x = x + linear(p["attn"]["proj"], (weights @ v).transpose(0, 2, 1, 3).reshape(b, n, d))
    y = linear(p["mlp"]["fc1"], norm(p["norm2"], x))
    y = y * 0.5 * (1 + jax.scipy.special.erf(y / np.sqrt(2)))
    return x + linear(p["mlp"]["fc2"], y)


def stack(params, name):
    return [params[f"{name}_{i}"] for i in range(sum(key.startswith(f"{name}_") for key in params))]


def forward(params, images, noise, *, model, ratio, normalize):
    """Loss, prediction [B, L, P] in image order, mask [B, L] for normalised images [B, H, W, C]."""
    (ph, pw), (gh, gw) = model.patch_size, model.grid
    b, length = images.shape[0], gh * gw
    # The convolution of the official code.
    x = jax.lax.conv_general_dilated(
        images,
        params["patch_embed"]["proj"]["kernel"],
        (ph, pw),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = x.reshape(b, length, -1) + params["patch_embed"]["proj"]["bias"]
    x = x + position_table(model.embed_dim, model.grid)[1:]
    keep = int(length * (1 - ratio))
    shuffle = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(shuffle, axis=1)
    x = jnp.stack([x[i, shuffle[i, :keep]] for i in range(b)])
    x = jnp.concatenate([jnp.tile(params["cls_token"], (b, 1, 1)), x], axis=1)
    for p in stack(params, "blocks"):
        x = block(p, x, model.num_heads)
    x = linear(params["decoder_embed"], norm(params["norm"], x))
    tokens = jnp.tile(params["mask_token"], (b, length - keep, 1))
    patches = jnp.concatenate([x[:, 1:], tokens], axis=1)
    patches = jnp.stack([patches[i, restore[i]] for i in range(b)])
    x = jnp.concatenate([x[:, :1], patches], axis=1)
    x = x + position_table(model.decoder_embed_dim, model.grid)
    for p in stack(params, "decoder_blocks"):
        x = block(p, x, model.decoder_num_heads)
    pred = linear(params["decoder_pred"], norm(params["decoder_norm"], x))[:, 1:]
    target = images.reshape(b, gh, ph, gw, pw, -1).transpose(0, 1, 3, 2, 4, 5)
    target = target.reshape(b, length, -1)
    if normalize:
        centred = target - target.mean(-1, keepdims=True)
        variance = (centred**2).sum(-1, keepdims=True) / (target.shape[-1] - 1)
        target = centred / jnp.sqrt(variance + 1e-6)
    mask = (restore >= keep).astype(jnp.float32)
    loss = (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()
    return loss, pred, mask
