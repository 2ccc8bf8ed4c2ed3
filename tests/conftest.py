"""Strictness for the whole suite: no implicit promotion of dtypes or ranks, and every warning is an error."""

import contextlib
import os
import time
from pathlib import Path

import chex
import hypothesis
import jax
import pytest

# Compilation takes most of the time of the tests. The compiled programs are kept on disk, where the workers, the
# processes that tests start, and the next run of the suite find them. The environment reaches all of these.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# jax writes a program in place: who reads it meanwhile is warned, and compiles it.
HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry"
os.environ["PYTHONWARNINGS"] = HALF_WRITTEN
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The first device computes everything that is not spread over all of them (tests/test_sharding.py).
jax.config.update("jax_num_cpu_devices", 8)
# A GPU multiplies matrices in TF32, which has three digits, unless it is told not to; programs that tests start, too.
jax.config.update("jax_default_matmul_precision", "highest")
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"

# Derandomized: a run of the suite can be repeated, and no example database is written.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", HALF_WRITTEN)
    if not hasattr(config, "workerinput"):
        forget_old_programs()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """`slow_unless(*ids)`: of a test with many cases all but these are slow."""
    unseen = {}
    for item in items:
        if marker := item.get_closest_marker("slow_unless"):
            fast = unseen.setdefault(item.function, set(marker.args))
            if item.callspec.id not in marker.args:
                item.add_marker(pytest.mark.slow)
            fast.discard(item.callspec.id)
    for function, ids in unseen.items():
        if ids and not any("::" in argument for argument in config.args):
            raise pytest.UsageError(f"{function.__name__}: no cases {sorted(ids)}, which slow_unless names")


def forget_old_programs(days=3):
    """Delete compiled programs that were written days ago: most belong to code that has changed since."""
    for path in CACHE.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run of the suite was faster
            if path.stat().st_mtime < time.time() - days * 86400:
                path.unlink()


@pytest.fixture(autouse=True)
def fresh_trace_counts():
    """chex counts the traces of equal functions together, parametrized tests included."""
    chex.clear_trace_counter()


@pytest.fixture(autouse=True, scope="module")
def free_memory():
    """Compiled programs of one file are seldom used by another, and a worker would grow to gigabytes."""
    yield
    jax.clear_caches()
