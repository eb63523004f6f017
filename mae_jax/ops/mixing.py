"""Mixup, CutMix and label smoothing, like timm's `Mixup` in batch mode, on device.

Reference: Zhang et al. (1710.09412), Yun et al. (1905.04899); recipe of the official
`main_finetune.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class MixConfig(NamedTuple):
    """Options of `mix`.

    Attributes:
      mixup: alpha of the Beta distribution for mixup; 0 turns mixup off.
      cutmix: the same for CutMix.
      prob: probability that a group is mixed.
      switch_prob: probability that a mixed group uses CutMix, if both are on.
      group: consecutive rows that share one draw and are paired with each other. The official code
        draws once per device batch, 32 rows in its recipes. Groups within one device need no
        communication.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    group: int = 32


def smooth_one_hot(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Targets float32 [B, num_classes] of int labels [B], with label smoothing over all classes."""
    hot = jax.nn.one_hot(labels, num_classes)
    return hot * (1.0 - smoothing) + smoothing / num_classes


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, cfg: MixConfig
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and target with its partner, the mirrored row of its group.

    Args:
      key: PRNG key.
      images: float [B, H, W, C]; B is a multiple of `cfg.group`.
      targets: float [B, num_classes].
      cfg: what to mix, and how often.

    Returns:
      Images and targets of the same shapes and dtypes.
    """
    height, width = images.shape[1:3]
    rows = images.reshape(-1, cfg.group, *images.shape[1:])
    goals = targets.reshape(-1, cfg.group, targets.shape[-1])
    keys = jax.random.split(key, 5)
    groups = rows.shape[0]
    cut = _use_cutmix(keys[0], groups, cfg)
    lam_mixup = jax.random.beta(keys[1], cfg.mixup or 1.0, cfg.mixup or 1.0, (groups,))
    lam_cutmix = jax.random.beta(keys[2], cfg.cutmix or 1.0, cfg.cutmix or 1.0, (groups,))
    inside = cutmix_box(keys[3], lam_cutmix, height, width)
    kept = 1.0 - inside.mean((1, 2))  # measured, because the box may cross the image's edge
    mixed = jax.random.uniform(keys[4], (groups,)) < cfg.prob
    lam = jnp.where(mixed, jnp.where(cut, kept, lam_mixup), 1.0)
    # Weight of each original pixel: constant for mixup, 0 or 1 for CutMix.
    share = jnp.where((cut & mixed)[:, None, None], 1.0 - inside, lam[:, None, None])
    share = share[:, None, :, :, None].astype(images.dtype)
    rows = rows * share + rows[:, ::-1] * (1 - share)
    lam = lam[:, None, None]
    goals = goals * lam + goals[:, ::-1] * (1 - lam)
    return rows.reshape(images.shape), goals.reshape(targets.shape)


def _use_cutmix(key: jax.Array, groups: int, cfg: MixConfig) -> jax.Array:
    """bool [groups]: which groups use CutMix rather than mixup."""
    prob = cfg.switch_prob if cfg.mixup > 0 and cfg.cutmix > 0 else float(cfg.cutmix > 0)
    return jax.random.uniform(key, (groups,)) < prob


def cutmix_box(key: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """float32 [G, height, width]: 1 inside a box with area fraction 1 - lam and uniform center."""
    ratio = jnp.sqrt(1.0 - lam)
    y_key, x_key = jax.random.split(key)

    def span(key: jax.Array, side: int) -> jax.Array:
        half = jnp.floor(side * ratio).astype(jnp.int32) // 2
        center = jax.random.randint(key, lam.shape, 0, side)
        at = jnp.arange(side)
        low, high = (center - half)[:, None], (center + half)[:, None]
        return ((at >= low) & (at < high)).astype(jnp.float32)

    return span(y_key, height)[:, :, None] * span(x_key, width)[:, None, :]
