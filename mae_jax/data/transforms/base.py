"""What a transform offers: from an image and its annotation to named arrays of fixed shapes."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from mae_jax.data.sources.base import Annotation


class Field(NamedTuple):
    """One array of a row; batches add a leading dimension.

    Attributes:
      shape: the same for every row; pad boxes, masks and the like to a maximum number.
      dtype: a NumPy type, by name.
      fill: every value of a row without an example (padding, unreadable images).
    """

    shape: tuple[int, ...]
    dtype: str
    fill: int = 0


class Transform(Protocol):
    """Makes one row of a batch. Called from several threads.

    Attributes:
      fields: the arrays by name; `index`, `valid` and `used` are reserved for the pipeline.
      num_draws: number of random draws per row; all zero in evaluation.
    """

    @property
    def fields(self) -> Mapping[str, Field]: ...

    @property
    def num_draws(self) -> int: ...

    def __call__(
        self, image: np.ndarray, annotation: Annotation, draws: np.ndarray
    ) -> Mapping[str, Any]:
        """Values of all fields.

        Args:
          image: [h, w, C], decoded, of any size; `data.dtype` is its type. Not to be changed.
          annotation: of the record, as its source gives it. Not to be changed.
          draws: float64 [num_draws], uniform in [0, 1). They depend only on the seed, the epoch
            and the example, so use no other randomness: batches are then the same on any number
            of hosts and after a restart.
        """
        ...


def blank_rows(fields: Mapping[str, Field], rows: int) -> dict[str, np.ndarray]:
    """Rows without examples: each field [rows, *shape], all of its fill value."""
    return {
        name: np.full((rows, *shape), fill, dtype) for name, (shape, dtype, fill) in fields.items()
    }


def set_row(batch: dict[str, np.ndarray], row: int, values: Mapping[str, Any]) -> None:
    """Copies the values of a transform into a batch.

    Raises:
      ValueError: the values are not the declared fields, or have other shapes.
      TypeError: values of another type, such as floats for integers.
    """
    if values.keys() != batch.keys():
        raise ValueError(f"a transform returned {sorted(values)}, but declares {sorted(batch)}")
    for name, value in values.items():
        array, value = batch[name], np.asarray(value)
        # Checked because NumPy would repeat a single box to fill all places, and cut off decimals.
        if value.shape != array.shape[1:]:
            raise ValueError(
                f"a transform returned {name!r} of shape {value.shape}, but declares "
                f"{array.shape[1:]}"
            )
        if value.dtype != array.dtype and not np.can_cast(value.dtype, array.dtype, "same_kind"):
            raise TypeError(
                f"a transform returned {name!r} as {value.dtype}, but declares {array.dtype}"
            )
        array[row] = value
