"""A jitted step of every optimizer is exported for every platform, and the exported one computes the same."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from problems import OPTIMIZERS, each, step

from paysage_jax import adam, chain, per_epoch, power_law_decay, warmup

PLATFORMS = ("cpu", "cuda", "tpu")
COMPOSITE = {"composite": chain(adam(warmup(per_epoch(power_law_decay(0.1)), 5), weight_decay=0.1), adam(0.1))}


@each(OPTIMIZERS | COMPOSITE)
def test_step_lowers_for_every_platform(optimizer):
    params = {"float32": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "bfloat16": jnp.linspace(-1, 2, 3, dtype="bfloat16")}

    @jax.jit
    def one_step(*args):
        return step(*args, epoch=jnp.int32(3))

    args = optimizer, params, optimizer.init(params), params
    exported = jax.export.export(one_step, platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS

    def check(actual, expected):
        precision = jnp.finfo(actual.dtype).eps if jnp.issubdtype(actual.dtype, jnp.floating) else 0
        np.testing.assert_allclose(np.float64(actual), np.float64(expected), rtol=2 * float(precision))

    jax.tree.map(check, exported.call(*args), one_step(*args))
