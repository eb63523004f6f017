"""Four CPU devices for every test, and compiled programs shared between tests."""

import logging
import os
import tempfile

import pytest

from tests.helpers.fake_gcs import FakeGcs

# Set before JAX starts. Tests run many small programs, so compilation dominates their time.
_CACHE = tempfile.TemporaryDirectory(prefix="mae_jax_tests_")
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Read once, at a process's first gs:// path. Here buckets of the same name come and go.
    "GCS_STAT_CACHE_MAX_AGE": "0",
}


@pytest.fixture(autouse=True)
def log_level():
    """Undoes what commands set: tests that expect no log record must not depend on their order."""
    logger = logging.getLogger("mae_jax")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def gcs(tmp_path_factory, monkeypatch):
    """A fake Google Cloud Storage with an empty `bucket`, for this process and its children."""
    with FakeGcs(tmp_path_factory.mktemp("gcs"), "bucket") as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        yield service
