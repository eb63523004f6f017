"""What is known about a model besides its arrays: stated by the file, by the user, or assumed."""

from typing import Any, NamedTuple

from mae_jax.runtime.errors import UsageError

# The flags with which a user states what a file does not.
_FLAGS = {
    "num_heads": "--num_heads, --config.model.num_heads",
    "decoder_num_heads": "--decoder_num_heads, --config.model.decoder_num_heads",
    "normalize": "--norm_pix_loss",
}


class Hints(NamedTuple):
    """What the user knows about a model, for what its file does not state.

    Attributes:
      num_heads, decoder_num_heads: attention heads, which no array shape reveals.
      image_size: (H, W); a position table reveals only the number of patches.
      normalize: whether the target was normalized patches.
      mean, std: of the pixels.
      classes: names of the classes, in the order of the head.
      fallback: use these values only where neither the file nor a good guess gives one.
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
    """Looks up facts about a model, first in the file, then in the hints; notes assumptions."""

    def __init__(self, stated: dict[str, Any], hints: Hints):
        self._stated, self._hints, self._fallback = stated, hints._asdict(), Hints()._asdict()
        if hints.fallback:
            self._hints, self._fallback = self._fallback, self._hints
        self.notes: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        """The value stated by the file, else by the user, else `default`."""
        stated, hint = self._stated.get(name), self._hints.get(name)
        if stated is None:
            return default if hint is None else hint
        if hint is not None and _plain(stated) != _plain(hint):
            flag = _FLAGS.get(name, f"--{name}")
            conflict = f"{stated}, not {hint}" if name != "classes" else "other names"
            raise UsageError(f"{flag}: the file says {conflict}")
        return stated

    def assume(self, name: str, default: Any, why: str = "") -> Any:
        """Like `get`, but falls back to `default` or a fallback hint, and notes the assumption."""
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
