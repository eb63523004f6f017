"""A one-line message for a JAX backend that is not available."""

import re
import sys

from mae_jax.runtime.errors import UsageError, one_line


def unavailable(error: BaseException) -> UsageError | None:
    """A one-line error if jax found no device; None for any other error.

    jax raises it wherever a device is first needed: a RuntimeError or, without an NVIDIA GPU, an
    AssertionError without a message. Listing the devices again shows whether that was the cause.
    """
    jax = sys.modules.get("jax")
    if jax is None or not _may_be_about_devices(error):
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as again:
        # jax's advice is dropped, since ours says the same.
        reason = one_line(again) if str(again) else "there are none"
        reason = re.sub(r" \((set JAX_PLATFORMS|you may need to).*", "", reason)
        platforms = jax.config.jax_platforms
        setting = f"JAX_PLATFORMS={platforms}" if platforms else "JAX_PLATFORMS is not set"
        return UsageError(
            f"{setting}: jax cannot start its devices ({reason}); JAX_PLATFORMS=cpu "
            f"runs on the CPU{'; unset JAX_PLATFORMS to let jax choose' * bool(platforms)}"
        )
    return None


def _may_be_about_devices(error: BaseException) -> bool:
    if isinstance(error, AssertionError):
        return not str(error)
    return isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)
