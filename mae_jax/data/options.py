"""`config.data`: every key, its default and its meaning, checked at startup."""

import dataclasses
from typing import Any

from mae_jax.config.schema import current_name
from mae_jax.config.validate import check_name, check_value
from mae_jax.runtime import host
from mae_jax.runtime.errors import UsageError


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """`config.data`, checked.

    Attributes:
      source: `shapes` (drawn by the project), `folder` (image files), `coco` (image files with
        boxes and masks) or `tfds` (a prepared set).
      root: folder: a directory, or a list file `.txt` / `.csv`. coco: a directory, see `coco.find`.
        tfds: its data_dir, '' = default.
      name: tfds: the data set, for example `imagenet2012` or `name/config:version`.
      split: the training split: a folder in root (root itself for '' or if there is no `train`, see
        `splits.find`), or a TFDS split expression such as `train[:90%]`.
      eval_split: the evaluation split; '' finds `val`, `validation`, `test` and the like or, if
        there is none, uses `holdout`. With a list file as root: another list file.
      holdout: number of training images set aside for evaluation if there is no evaluation split.
        They do not depend on the run's seed and are never trained on. 0 = no evaluation source.
      num_train, num_eval: size of the two splits of `shapes`.
      scenes: of `shapes`: `cluttered` with overlapping patterned objects, or `plain` with one large
        object each.
      shape_classes: number of classes of `shapes`.
      augment: `crop` (torchvision's random resized crop), `crop_once` (one draw, cut to the image:
        linear probing), `crop_fixed` (a random place of the image, resized to 256/224 of the size)
        or `none` (the evaluation view, never mirrored).
      crop_scale: range of the crop's share of the image area.
      crop_ratio: range of the crop's width / height.
      hflip: mirror half of the training images.
      scale_jitter: for detection, the range of the size of training images relative to the largest
        that fits into the model's input; what does not fit is cropped.
      max_objects: for detection, the number of objects of a training image; if there are more, the
        largest are kept.
      randaug_magnitude: RandAugment's mean magnitude of at most 10 (recipes: 9); 0 = off.
      randaug_std: its standard deviation.
      color_jitter: strength of random brightness, contrast and saturation; 0 = off.
      resizer: what resizes 8-bit images: `pillow`, `fast` (cykooz-resizer, if it is installed) or
        `auto`, which is `pillow` for evaluation views and `fast` for training crops.
      resize_antialias: False is visibly aliased (mean change 2 of 255), and slower.
      exif_transpose: apply the EXIF orientation of photos.
      mean: of the pixels, per channel; RandAugment fills corners with it.
      dtype: `uint8`, or `float32` in the file's own units (needed for .npy other than uint8).
      max_bad_fraction: unreadable share of a split above which the run stops. Up to ten images are
        tolerated in any case, unless they are half of the split. 0 tolerates none.
      storage_wait: seconds to wait for storage that cannot be read before the run saves and stops.
      workers: decoding threads, 0 = one per available core.
      prefetch: batches prepared ahead.
      cache: what stays in memory once it has been read: `none`, `encoded` (the files) or `decoded`
        (their pixels before cropping: several times larger, but saves decoding).
      cache_gb: GiB for the cache on each host, divided among the host's processes; 0 = half of the
        memory available at startup.
      on_device: keep decoded images on the devices and crop them there; for small sets, without
        color changes. Pixels of random crops may differ by 1, rarely 2, of 255.
    """

    source: str = "shapes"
    root: str = ""
    name: str = ""
    split: str = "train"
    eval_split: str = ""
    holdout: int = 0
    num_train: int = 50_000
    num_eval: int = 1_000
    scenes: str = "cluttered"
    shape_classes: int = 12
    augment: str = "crop"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = True
    scale_jitter: tuple[float, float] = (0.1, 2.0)
    max_objects: int = 100
    randaug_magnitude: float = 0.0
    randaug_std: float = 0.5
    color_jitter: float = 0.0
    resizer: str = "auto"
    resize_antialias: bool = True
    exif_transpose: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    dtype: str = "uint8"
    max_bad_fraction: float = 0.001
    storage_wait: float = 300.0
    workers: int = 0
    prefetch: int = 2
    cache: str = "none"
    cache_gb: float = 0.0
    on_device: bool = False

    @classmethod
    def from_config(cls, data_config: Any) -> "DataOptions":
        """Reads a ConfigDict, a mapping or DataOptions; absent keys take their defaults.

        Raises:
          UsageError: unknown key, or a value outside its range.
        """
        if isinstance(data_config, cls):
            return data_config
        known = {field.name for field in dataclasses.fields(cls)}
        values = {}
        for key, value in data_config.items():
            key = current_name(f"data.{key}").removeprefix("data.")
            if key in known:
                values[key] = tuple(value) if isinstance(value, (list, tuple)) else value
            else:
                check_name(f"data.{key}")
        return cls(**values)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_value(f"data.{field.name}", getattr(self, field.name))
        if self.changes_colors and self.dtype != "uint8":
            raise UsageError(
                "--config.data.randaug_magnitude and color_jitter need 8-bit color images: set "
                "them to 0 with --config.data.dtype=float32"
            )
        if self.changes_colors and self.on_device:
            raise UsageError(
                "--config.data.on_device=True crops and mirrors on the devices but does not change "
                "colors: set --config.data.randaug_magnitude=0 and --config.data.color_jitter=0, "
                "or --config.data.on_device=False"
            )

    @property
    def changes_colors(self) -> bool:
        """Whether RandAugment or color jitter is on."""
        return self.randaug_magnitude > 0 or self.color_jitter > 0

    def exact_resize(self, *, train: bool) -> bool:
        """Whether Pillow resizes, so that pixels equal those of a torchvision pipeline exactly."""
        evaluation = not train or self.augment == "none"
        return self.resizer == "pillow" or (self.resizer == "auto" and evaluation)

    @property
    def num_workers(self) -> int:
        """Decoding threads: `workers`, or the cores this process may run on."""
        return self.workers or host.usable_cpus()
