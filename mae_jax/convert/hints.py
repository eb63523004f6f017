"""What is known of a model besides its arrays: by its file, by the user, by assumption."""

from typing import Any, NamedTuple

from mae_jax.runtime.errors import UsageError

# How a user says what a file does not.
_FLAGS = {
    "num_heads": "--num_heads, --config.model.num_heads",
    "decoder_num_heads": "--decoder_num_heads, --config.model.decoder_num_heads",
    "normalize": "--norm_pix_loss",
}


class Hints(NamedTuple):
    """What the user knows of a model, for what its file does not say.

    Attributes:
      num_heads, decoder_num_heads: heads of attention; no shape tells.
      image_size: (H, W); a position table only tells the number of patches.
      normalize: whether the target were normalised patches.
      mean, std: of the pixels.
      classes: names of the classes, in the order of the head.
      fallback: this is no claim: it counts where neither the file nor a good guess says anything.
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    normalize: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: list[str] | None = None
    fallback: bool = False


class Facts:
    """What is known, from the file before the user; remembers where from."""

    def __init__(self, stated: dict[str, Any], hints: Hints):
        self._stated, self._hints, self._fallback = stated, hints._asdict(), Hints()._asdict()
        if hints.fallback:
            self._hints, self._fallback = self._fallback, self._hints
        self.notes: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        """What the file says, or else the user, or else `default`."""
        stated, hint = self._stated.get(name), self._hints.get(name)
        if stated is None:
            return default if hint is None else hint
        if hint is not None and _plain(stated) != _plain(hint):
            flag = _FLAGS.get(name, f"--{name}")
            what = f"{stated}, and you say {hint}" if name != "classes" else "others than you do"
            raise UsageError(f"{flag}: the file says {what}")
        return stated

    def assume(self, name: str, default: Any, why: str = "") -> Any:
        """The same, or else a hint for this case; takes a note where something is assumed."""
        value = self.get(name)
        if value is not None:
            return value
        if default is not None:
            self.notes.append(f"{name}: assumed {default}{why}")
            return default
        if self._fallback.get(name) is not None:
            self.notes.append(f"{name}: assumed {self._fallback[name]} (from the configuration)")
        return self._fallback.get(name)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
