"""One message for a JAX backend that is not available."""

import re
import sys

from mae_jax.runtime.errors import UsageError, one_line


def unavailable(error: BaseException) -> UsageError | None:
    """The one line for an error of jax that found no device; None for any other error.

    jax raises it wherever a device is first needed: a RuntimeError, or, without an NVIDIA GPU, an
    AssertionError without any text. Asking jax again shows whether it was about devices.
    """
    jax = sys.modules.get("jax")
    if jax is None or not _may_be_of_devices(error):
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as again:
        # jax's advice is left out: ours says the same.
        reason = one_line(again) if str(again) else "there are none"
        reason = re.sub(r" \((set JAX_PLATFORMS|you may need to).*", "", reason)
        asked = jax.config.jax_platforms
        said = f"JAX_PLATFORMS={asked}" if asked else "JAX_PLATFORMS is not set"
        return UsageError(
            f"{said}: jax cannot start its devices ({reason}); JAX_PLATFORMS=cpu "
            f"computes on the CPU{', and without JAX_PLATFORMS jax chooses' * bool(asked)}"
        )
    return None


def _may_be_of_devices(error: BaseException) -> bool:
    if isinstance(error, AssertionError):
        return not str(error)
    return isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)
