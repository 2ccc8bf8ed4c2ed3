"""Strictness for the whole suite: no implicit promotion of dtypes or ranks, and every warning is an error."""

import os

import chex
import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The first device computes what is not laid out over all of them (tests/test_sharding.py).
jax.config.update("jax_num_cpu_devices", 8)
# A GPU multiplies matrices in TF32, which has three digits, unless it is told not to; programs that tests start, too.
jax.config.update("jax_default_matmul_precision", "highest")
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"

# Derandomized: a run of the suite can be repeated, and no example database is written.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(autouse=True)
def fresh_trace_counts():
    """chex counts the traces of equal functions together, parametrized tests included."""
    chex.clear_trace_counter()
