"""The order of examples as a pure function of (seed, step): NumPy only, no state to save.

Position p of the run is example `permutation(seed, epoch)[p % n]` of epoch `p // n`. Batches run
across epoch boundaries and nothing is dropped, so the step is enough to restore the position.
"""

import functools
import logging
from typing import NamedTuple

import numpy as np

from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)

REPLACEMENTS = 8  # tried in turn when an example cannot be read
MAX_TENTH = 5_000  # examples held out where a tenth of the set is asked for


class Plan(NamedTuple):
    """What one host loads for one step.

    Attributes:
      wanted: int64 [b] example per row; -1 marks a row that pads the last batch.
      candidates: int64 [b, k] the wanted example, then its replacements.
      draws: float64 [b, d] uniform numbers in [0, 1) for the augmentation of each row.
    """

    wanted: np.ndarray
    candidates: np.ndarray
    draws: np.ndarray


def host_rows(batch_size: int, *, process_index: int, process_count: int) -> slice:
    """Rows of every global batch that belong to one host.

    Raises:
      UsageError: the batch does not divide evenly.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UsageError(
            f"--config.batch_size={batch_size} must be a positive multiple of the number of "
            f"hosts ({process_count})"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def hash64(*parts: int | np.ndarray) -> np.ndarray:
    """Mixes integers (arrays broadcast) into uint64 hashes, with SplitMix64's finalizer.

    Reference: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        for part in parts:
            state = state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


class TrainSampler:
    """The endless order of a training run over `num_examples` examples."""

    def __init__(self, num_examples: int, *, seed: int, batch_size: int = 1):
        """Arguments: the set's size, and the run's seed and batch size (for a warning)."""
        if num_examples < batch_size:
            log.warning(
                "%s training images are fewer than one batch: each is in it about %.3g times, "
                "each time cropped differently (--config.batch_size=%d)",
                *(f"{num_examples:,}", batch_size / num_examples, batch_size),
            )
        self.num_examples = num_examples
        self.seed = seed
        # A batch touches at most two epochs, unless it is longer than one. 1.28 M examples take
        # 36 ms and 10 MB.
        self._permutation = functools.lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example, both int64 [b], at the given positions of the run."""
        epochs, offsets = np.divmod(positions.astype(np.int64), self.num_examples)
        examples = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            examples[rows] = self._permutation(int(epoch))[offsets[rows]]
        return epochs, examples

    def plan(self, step: int, *, batch_size: int, rows: slice, num_draws: int) -> Plan:
        """The given rows of the global batch of one step.

        Replacements and draws depend on (seed, epoch, example) only, so they are equal for any
        number of hosts and workers.
        """
        positions = np.int64(step) * batch_size + np.arange(rows.start, rows.stop)
        epochs, examples = self.at(positions)
        key = hash64(self.seed, epochs, examples)[:, None]
        spare = hash64(key, 1, np.arange(REPLACEMENTS)) % np.uint64(self.num_examples)
        # 32 bits are enough, and keep `floor(draw * n) < n` exact in float64 for any image size.
        draws = (hash64(key, 2, np.arange(num_draws)) >> np.uint64(32)) * 2.0**-32
        candidates = np.concatenate([examples[:, None], spare.astype(np.int64)], axis=1)
        return Plan(wanted=examples, candidates=candidates, draws=draws)


class EvalSampler:
    """One pass over a finite split: each example once, the last batch padded with -1."""

    def __init__(self, num_examples: int, *, limit: int | None = None):
        if limit is not None and limit < 1:
            raise UsageError(f"the number of examples to evaluate on must be positive, not {limit}")
        count = num_examples if limit is None else min(limit, num_examples)
        # Evenly spaced, because listings are sorted by class.
        self.examples = np.arange(count, dtype=np.int64) * num_examples // count

    def num_batches(self, batch_size: int) -> int:
        """Global batches of the pass; the same for every host."""
        return -(-len(self.examples) // batch_size)

    def plan(self, step: int, *, batch_size: int, rows: slice, num_draws: int) -> Plan:
        """As `TrainSampler.plan`, without replacements: an unreadable example must not count."""
        positions = np.int64(step) * batch_size + np.arange(rows.start, rows.stop)
        inside = positions < len(self.examples)
        wanted = np.where(inside, self.examples[np.where(inside, positions, 0)], -1)
        draws = np.zeros((len(wanted), num_draws))
        return Plan(wanted=wanted, candidates=wanted[:, None], draws=draws)


def fitting_holdout(num_examples: int, wanted: int) -> int:
    """`wanted`, or a tenth of the set if that is more than half of it or -1; at least one."""
    if 0 <= 2 * wanted <= num_examples:
        return wanted
    tenth = max(1, num_examples // 10)
    return min(tenth, MAX_TENTH) if wanted < 0 else tenth


@functools.cache
def holdout_split(num_examples: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits a set into sorted (train, held-out) indices, independently of the run's seed.

    Raises:
      UsageError: nothing would be left to train on.
    """
    if count >= num_examples:
        raise UsageError(
            f"--config.data.holdout={count} leaves nothing of the {num_examples:,} training images"
        )
    order = np.random.default_rng([0x484F4C44, num_examples]).permutation(num_examples)
    return np.sort(order[count:]), np.sort(order[:count])
