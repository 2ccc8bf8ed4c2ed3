"""Other libraries, if they are installed, and the lower bound that the memory bandwidth sets."""

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _if_installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


optax, torch, sklearn_networks = map(_if_installed, ("optax", "torch", "sklearn.neural_network"))
rbms_model, rbms_training = map(_if_installed, ("rbms.bernoulli_bernoulli.classes", "rbms.training.pcd"))
rbms_potts, rbms_zero_sum = map(_if_installed, ("rbms.potts_bernoulli.classes", "rbms.potts_bernoulli.utils"))
adabmdca = _if_installed("adabmDCA.sampling")


def on_cpu():
    """Whether JAX computes on the CPU, as numpy, torch and scikit-learn do here."""
    return jax.default_backend() == "cpu"


# --- steps of Adam -----------------------------------------------------------------------------------


class NumpyAdam:
    """Textbook Adam by hand: in place, with buffers made once."""

    def __init__(self, params, gradients, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
        self.params = [p.copy() for p in params]
        self.learning_rate, self.b1, self.b2, self.eps, self.t = learning_rate, b1, b2, eps, 0
        moments_and_scratch = [tuple(np.zeros_like(p) for _ in range(3)) for p in params]
        self.leaves = [(p, g, *more) for p, g, more in zip(self.params, gradients, moments_and_scratch, strict=True)]

    def __call__(self, count):
        for _ in range(count):
            self.t += 1
            for leaf in self.leaves:
                self.update(*leaf)

    def update(self, p, g, m, v, scratch):
        m *= self.b1
        m += np.multiply(g, 1 - self.b1, out=scratch)
        np.multiply(g, g, out=scratch)
        scratch *= 1 - self.b2
        v *= self.b2
        v += scratch
        np.divide(v, 1 - self.b2**self.t, out=scratch)
        np.sqrt(scratch, out=scratch)
        scratch += self.eps
        np.divide(m, scratch, out=scratch)
        scratch *= self.learning_rate / (1 - self.b1**self.t)
        p -= scratch

    def values(self):
        return self.params


class TorchAdam:
    """torch.optim.Adam(fused=True) with the given number of threads."""

    def __init__(self, params, gradients, learning_rate, threads):
        self.threads = threads
        self.params = [torch.tensor(p, requires_grad=True) for p in params]
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = torch.from_numpy(g)
        self.optimizer = torch.optim.Adam(self.params, learning_rate, fused=True)

    def __call__(self, count):
        torch.set_num_threads(self.threads)
        for _ in range(count):
            self.optimizer.step()

    def values(self):
        return [p.detach().numpy() for p in self.params]


def steps_of_adam(params, gradients, learning_rate):
    """The variants on NumPy arrays; None if there is nothing to compare with."""

    def with_torch(threads):
        return TorchAdam(params, gradients, learning_rate, threads) if torch and on_cpu() else None

    return {
        "torch, 1 thread": with_torch(1),
        "torch, 2 threads": with_torch(2),
        "numpy": NumpyAdam(params, gradients, learning_rate) if on_cpu() else None,
    }


# --- the floor ---------------------------------------------------------------------------------------


class Floor:
    """a += b in NumPy, with one thread per core, on arrays of a size that moves `moved` bytes."""

    def __init__(self, moved):
        threads = os.cpu_count() or 1
        size = moved // 12 // threads  # a is read and written, b is read
        self.parts = [(np.ones(size, np.float32), np.ones(size, np.float32)) for _ in range(threads)]
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self, count):
        def add(part):
            for _ in range(count):
                np.add(*part, out=part[0])

        list(self.pool.map(add, self.parts))


class DeviceFloor:
    """The same on an accelerator, as a donated a + b."""

    def __init__(self, moved):
        self.a, self.b = jnp.ones(moved // 12), jnp.ones(moved // 12)
        self.add = jax.jit(jnp.add, donate_argnums=0)

    def __call__(self, count):
        for _ in range(count):
            self.a = self.add(self.a, self.b)
        self.a.block_until_ready()


def floor(moved):
    """The time to move so many bytes in place; None if they are too few to matter."""
    if moved < 2**20:
        return None
    return Floor(moved) if on_cpu() else DeviceFloor(moved)


class Products:
    """The matrix products of a step of a Boltzmann machine alone, in XLA, one after the other.

    up, down: the rows of each product with W and with its transpose; then come those of the gradient, of the first and
    the last rows of `up`: data and samples. each: steps in one call.
    """

    def __init__(self, visible: int, hidden: int, up: list[int], down: list[int], each: int = 1):
        random = np.random.default_rng(0)
        rows = max(up)
        shapes = (rows, visible), (rows, hidden), (visible, hidden)
        self.carry = (*(jnp.array(random.random(shape, np.float32)) for shape in shapes), jnp.zeros(()))

        def product(total, a, b):
            """a @ b, which waits for the product before: none is left out, taken from another or out of the loop."""
            shape = len(a), b.shape[1]
            c = jax.lax.cond(total < jnp.inf, lambda: a @ b, lambda: jnp.zeros(shape))
            return total + c[jnp.int32(total) % len(a), 0] % 1

        def all_products(_, carry):
            v, h, W, total = carry
            for n in up:
                total = product(total, v[:n], W)
            for n in down:
                total = product(total, h[:n], W.T)
            for n in (up[0], up[-1]):
                total = product(total, v[:n].T, h[:n])
            return v, h, W, total % 1

        run = jax.jit(lambda count, carry: jax.lax.fori_loop(0, count, all_products, carry), donate_argnums=1)
        self.run, self.each = run, each

    def __call__(self, count):
        self.carry = jax.block_until_ready(self.run(count * self.each, self.carry))


# --- the optimizer of 2017 ---------------------------------------------------------------------------


class NumpyAdam2017:
    """paysage's ADAM of 2017, its formulas in numpy."""

    def __init__(self, stepsize=0.001, mean_weight=0.9, mean_square_weight=0.999):
        self.stepsize, self.w, self.W = stepsize, mean_weight, mean_square_weight
        self.moments = {}

    def update(self, model, v_data, v_model, epoch):
        learning_rate = self.stepsize / (1 + 0.1 * epoch)
        gradient = model.gradient(v_data, v_model)
        self.delta = {
            group: [
                {name: learning_rate * self.direction((group, i, name), g) for name, g in leaves.items()}
                for i, leaves in enumerate(members)
            ]
            for group, members in gradient.items()
        }
        model.parameter_update(self.delta)

    def direction(self, leaf, g):
        if leaf in self.moments:
            m, v = self.moments[leaf]
            m, v = self.w * m + (1 - self.w) * g, self.W * v + (1 - self.W) * g * g
        else:
            m, v = g, g * g
        self.moments[leaf] = m, v
        return (m / (1 - self.w)) / np.sqrt(2.0**-23 + v / (1 - self.W))


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


# --- training in rbms --------------------------------------------------------------------------------


def train_rbms(params, data, batch_size, updates, steps, rate, after_update=lambda params: None):
    """The loop of `training.pcd.train` in rbms, without the files that it writes after every update."""
    params.init_grad()
    data, weights = torch.from_numpy(data).float(), torch.ones(len(data))
    chains = params.init_chains(batch_size, start_v=data[:batch_size])
    optimizer = torch.optim.SGD(params.parameters(), lr=rate, maximize=True)
    with torch.no_grad():
        for _ in range(updates):
            rows = torch.randperm(len(data))[:batch_size]
            optimizer.zero_grad(set_to_none=False)
            batch = data[rows], weights[rows]
            chains, _ = rbms_training.fit_batch_pcd(batch, chains, params, gibbs_steps=steps, beta=1.0)
            optimizer.step()
            after_update(params)
