"""Four CPU devices for every test, and compiled programs shared between tests."""

import logging
import os
import pathlib
import tempfile

import pytest

from tests.helpers.fake_gcs import FakeGcs
from tests.helpers.processes import xla_flags

# Compilation dominates the time of tests, which run many small programs once or twice. Compiled
# programs are shared by all workers of pytest-xdist and by the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="mae_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
# Set before JAX starts.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags(devices=4),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Read once, at a process's first gs:// path. Here buckets of the same name come and go.
    "GCS_STAT_CACHE_MAX_AGE": "0",
}


# Start first, longest first. pytest-xdist hands out whole files: a long one at the end would leave
# all other workers idle.
LONG_FILES = (
    "e2e/test_main.py",
    "tasks/test_classify.py",
    "tasks/test_detect.py",
    "e2e/test_ablations.py",
    "train/test_loop.py",
    "tools/study/test_main.py",
    "models/targets/test_pca.py",
    "tools/test_convert.py",
    "test_configs.py",
    "models/test_mae.py",
    "models/test_mask_rcnn.py",
    "models/targets/test_tokens.py",
    "launch/test_local.py",
    "tasks/test_loss_on.py",
    "tasks/test_masks.py",
    "e2e/test_bucket_run.py",
    "tools/preflight/test_main.py",
    "e2e/test_storage_outage.py",
    "tools/test_extract.py",
    "soak/test_kill.py",
    "tasks/test_tokenizer.py",
    "models/test_parity.py",
    "models/test_vit.py",
    "runtime/test_gcs_lock.py",
    "test_notebook.py",
)


def pytest_collection_modifyitems(items):
    root = pathlib.Path(__file__).parent
    rank = {root / name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


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
