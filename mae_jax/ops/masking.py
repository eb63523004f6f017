"""Which patches the encoder sees (paper section 3, "Masking").

Every sampler returns a `Masking` with the same, static number of visible patches for each image, so
that shapes stay static under jit.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Masking:
    """A shuffled list of patches per image, of which the first `len_keep` are visible.

    Attributes:
      ids_shuffle: int32 [B, L], a permutation of the patch indices for each image.
      len_keep: number of visible patches (a Python int).
    """

    ids_shuffle: jax.Array
    len_keep: int = flax.struct.field(pytree_node=False)

    @property
    def ids_keep(self) -> jax.Array:
        """Indices of the visible patches [B, len_keep], in shuffled order."""
        return self.ids_shuffle[:, : self.len_keep]

    @property
    def ids_masked(self) -> jax.Array:
        """Indices of the removed patches [B, L - len_keep], in shuffled order."""
        return self.ids_shuffle[:, self.len_keep :]

    @property
    def ids_restore(self) -> jax.Array:
        """Place [B, L] of every patch in the shuffled list; gathering by it undoes the shuffle."""
        return jnp.argsort(self.ids_shuffle, axis=1)

    @property
    def mask(self) -> jax.Array:
        """float32 [B, L] in image order: 0 is visible, 1 is removed."""
        return (self.ids_restore >= self.len_keep).astype(jnp.float32)


def num_keep(num_patches: int, mask_ratio: float) -> int:
    """Number of visible patches: `num_patches * (1 - mask_ratio)` rounded down in float64.

    Raises:
      ValueError: the ratio is outside [0, 1), or leaves no patch to see.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask ratio {mask_ratio} is outside [0, 1)")
    keep = int(num_patches * (1 - mask_ratio))
    if keep < 1:
        raise ValueError(f"mask ratio {mask_ratio} leaves none of {num_patches} patches visible")
    return keep


def from_noise(noise: jax.Array, mask_ratio: float) -> Masking:
    """Keeps the patches of lowest noise. `noise` [B, L]; ties go to the lower index."""
    return Masking(jnp.argsort(noise, axis=1), num_keep(noise.shape[1], mask_ratio))


def from_mask(mask: jax.Array, len_keep: int) -> Masking:
    """The masking for a given `mask` [B, L], 1 = removed, with `len_keep` zeros in every row."""
    return Masking(jnp.argsort(mask, axis=1), len_keep)


def random_noise(key: jax.Array, batch: int, grid: tuple[int, int]) -> jax.Array:
    """Uniform noise float32 [batch, L]: a mask of its own for every image (random sampling)."""
    return jax.random.uniform(key, (batch, grid[0] * grid[1]))


# A sampler is a distribution of noise: sorting it decides which patches stay.
NOISE = {"random": random_noise}
