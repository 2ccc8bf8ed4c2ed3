"""The trees of parameters that the steps are measured on."""

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj


def _transformer(width=480, layers=9, words=1000, context=256):
    norm = {"scale": (width,), "bias": (width,)}

    def dense(n, m):
        return {"kernel": (n, m), "bias": (m,)}

    layer = {
        "attention_norm": norm,
        **{name: dense(width, width) for name in ("query", "key", "value", "out")},
        "mlp_norm": norm,
        "up": dense(width, 4 * width),
        "down": dense(4 * width, width),
    }
    return {"words": (words, width), "positions": (context, width), "layers": [layer] * layers, "norm": norm}


TREES = {
    "W1": ("1 leaf of 50,000,000", {"w": (50_000_000,)}),
    "W2": ("RBM 784 × 500", {"layers": [{"loc": (784,)}, {"loc": (500,)}], "weights": [{"matrix": (784, 500)}]}),
    "W3": ("transformer, 25 million in 148 leaves", _transformer()),
    "W4": ("2,000 leaves of 1,000", [(1000,)] * 2000),
    "W5": ("10 leaves of 10", [(10,)] * 10),
}


def normal(shapes, seed=0):
    """A numpy tree of normal numbers, of standard deviation 0.1."""
    draw = np.random.default_rng(seed).standard_normal

    def leaf(shape):
        return np.float32(0.1) * draw(shape, np.float32)

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def params_and_gradients(workload):
    """The initial parameters of a workload and its gradients, as NumPy trees."""
    shapes = TREES[workload][1]
    return normal(shapes), normal(shapes, seed=1)


def on_device(tree, dtype=jnp.float32):
    """A copy as JAX arrays, because the memory of NumPy arrays must not be donated."""
    return jax.tree.map(lambda x: jnp.array(x, dtype), tree)


def leaves_of(params):
    """The leaves of a tree, packed or not, as numpy arrays."""
    tree = pj.packing.unpack(params) if isinstance(params, pj.packing.Packed) else params
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)]
