"""Fits the PCA of a target to training images, once per run: `pca.npz` in the workdir."""

import contextlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from mae_jax.distributed import collectives
from mae_jax.models.targets import PatchSpec, pca
from mae_jax.ops.patches import patchify, to_float
from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError, require
from mae_jax.tasks.base import ImageTask

log = logging.getLogger(__name__)

FILE = "pca.npz"
BATCH = 64  # images per batch
# Keys of `config.data` that affect the pixels of the evaluation transform.
_PIXELS = ("mean", "std", "resize_antialias", "exif_transpose", "dtype")


def fit(task: ImageTask, spec: PatchSpec) -> dict[str, np.ndarray]:
    """Arrays of a `PcaTarget`, identical on all processes. Collective: all must call it.

    Process 0 fits them to evenly spaced training images in the evaluation transform, independent
    of the seed and the number of processes, or reads them from the workdir if the run was started
    before.

    Raises:
      UsageError: there are too few patches, images cannot be read, or the workdir has another PCA.
    """
    like = pca.placeholders(spec, task.config.target.components)
    return collectives.broadcast_arrays(lambda: _arrays(task, spec), like)


def _arrays(task: ImageTask, spec: PatchSpec) -> dict[str, np.ndarray]:
    about = _about(task, spec)
    path = os.path.join(task.workdir, FILE) if task.workdir else ""
    if path and filesystem.exists(path):
        return _read(path, about)
    number, components = about["images"], about["components"]
    log.info("PCA: reading %d training images", number)
    fitted = pca.fit(_patches(task, spec, number), spec.patch_dim, components)
    require(
        fitted.patches > components,
        f"--config.target.components={components} need more patches than the {fitted.patches} of "
        f"{number} images: raise --config.target.fit_images, or lower --config.target.components",
    )
    share = fitted.variance[:components].sum() / max(fitted.variance.sum(), 1e-30)
    log.info(
        "PCA of %s patches of %d images: %d of %d components explain %.2f %% of the variance",
        *(f"{fitted.patches:,}", number, components, spec.patch_dim, 100 * share),
    )
    arrays = {"mean": fitted.mean, "components": fitted.components}
    if path:
        _write(path, arrays | {"variance": fitted.variance, "about": np.array(json.dumps(about))})
    return arrays


def _about(task: ImageTask, spec: PatchSpec) -> dict[str, Any]:
    """Everything that the arrays depend on, as JSON types."""
    options = task.config.target
    source = task.data.train_source.fingerprint()
    about = {
        "components": options.components,
        "images": min(options.fit_images, len(task.data.train_source)),
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "channels": spec.channels,
        "pixels": {key: task.config.data[key] for key in _PIXELS},
        # The same data may be moved.
        "source": {key: value for key, value in source.items() if key != "root"},
    }
    return json.loads(json.dumps(about))


def _patches(task: ImageTask, spec: PatchSpec, number: int) -> Iterator[np.ndarray]:
    """Batches of normalized patches float32 [n, P] of the readable ones among `number` images."""
    with contextlib.closing(
        task.data.replicated_batches(task.data.train_source, number, BATCH)
    ) as batches:
        for batch in batches:
            images = np.asarray(batch["image"])[np.asarray(batch["valid"])]
            patches = patchify(jnp.asarray(images), spec.patch_size)
            patches = to_float(patches, spec.mean, spec.std)
            yield np.asarray(patches).reshape(-1, spec.patch_dim)


def _write(path: str, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    try:
        filesystem.write(path, content.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _read(path: str, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reads the arrays of an earlier start, if they depend on the same data and options."""
    advice = "use a new --workdir, or remove the file to fit the PCA again"
    try:
        with np.load(io.BytesIO(filesystem.read(path)), allow_pickle=False) as file:
            saved = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in ("mean", "components")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read ({error}): {advice}") from error
    other = [f"{k}: {saved.get(k)} -> {about[k]}" for k in about if saved.get(k) != about[k]]
    require(not other, f"{path} is the PCA of other data or options ({'; '.join(other)}): {advice}")
    log.info("PCA from an earlier start: %s", path)
    return arrays
