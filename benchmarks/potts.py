"""Potts models compared with torch: a Gibbs sweep without hidden units (adabmDCA), and an epoch of an RBM (rbms)."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj
from paysage_jax import rbm

from .boltzmann import Runs
from .measure import PAUSE, Result, compare
from .peers import adabmdca, on_cpu, rbms_potts, rbms_zero_sum, torch, train_rbms

SITES, STATES = 136, 5  # the riboswitch RF00379, an example of both peers
CHAINS = 1000
HIDDEN, BATCH, STEPS, EPOCHS = 100, 2000, 10, 2  # the sizes of rbms, which takes 100 Gibbs steps instead
RATE = 0.01  # the length of every step: rbms divides the gradient by its norm
TINY = 1e-6


def potts(seconds: float) -> Iterator[Result]:
    """A Gibbs sweep of a Potts model (adabmDCA), and an epoch of a Potts-Bernoulli machine trained by PCD-10 (rbms)."""
    for states in (STATES, 21):
        data = sequences(CHAINS, states)
        model = rbm.PottsModel(states)
        params = model.init(data)
        params["couplings"] = 0.05 * jax.random.normal(jax.random.key(0), params["couplings"].shape)
        peer = {"adabmDCA": TorchSweeps(params, data) if adabmdca and on_cpu() else None}
        title = f"a sweep of {CHAINS} chains of {SITES} sites of {states} states"
        yield compare(title, {"PottsModel": Sweeps(model, params, data)}, peer, seconds, pause=PAUSE)

    data = sequences(6000, STATES)
    machine = rbm.RBM(rbm.Categorical(STATES), rbm.Binary())
    run = (machine.init(data, HIDDEN, jax.random.key(0)), data)
    peer = {"rbms": Runs(partial(_rbms, *run)) if rbms_potts and on_cpu() else None}
    title = f"PCD-{STEPS}, an epoch of {len(data) // BATCH} steps, {SITES} × {STATES} × {HIDDEN}, batches of {BATCH}"
    mine = {"fit": Runs(partial(_fit, machine, *run))}
    result = compare(title, mine, peer, seconds, each=EPOCHS, pause=PAUSE)
    check_learned_alike(machine, data, {name: runs.params for name, runs in (mine | peer).items() if runs})
    yield result


def sequences(rows: int, states: int, families: int = 20, mutated: float = 0.3) -> np.ndarray:
    """Random sequences, each a copy of one of a few ancestors with some sites drawn again."""
    random = np.random.default_rng(0)
    clean = random.integers(states, size=(families, SITES))[random.integers(families, size=rows)]
    drawn = random.integers(states, size=clean.shape)
    return np.where(random.random(clean.shape) < mutated, drawn, clean).astype(np.int32)


def check_learned_alike(machine, data, trained):
    """Raise AssertionError unless all reconstruct the data about as well (their random numbers differ)."""
    metric = pj.reconstruction_error(machine, data)
    errors = {
        name: float(metric(pj.TrainState(jax.tree.map(jnp.asarray, params), (), ()), jax.random.key(0)))
        for name, params in trained.items()
    }
    if max(errors.values()) > 1.05 * min(errors.values()):
        raise AssertionError(f"the machines did not learn alike; shares of wrong states: {errors}")


class Sweeps:
    """Chains that continue from call to call, with one call of the compiled transition for each sweep."""

    def __init__(self, model, params, data):
        self.transition, self.params, self.v = jax.jit(model.transition), params, jnp.asarray(data)
        self.key, self.done = jax.random.key(0), 0

    def __call__(self, count):
        for _ in range(count):
            self.done += 1
            self.v = self.transition(self.params, self.v, jax.random.fold_in(self.key, self.done))
        jax.block_until_ready(self.v)


class TorchSweeps:
    """The sampler of adabmDCA. It updates as many sites as a sweep has, drawn at random and the same in all chains."""

    def __init__(self, params, data):
        couplings = np.zeros((SITES, SITES, *params["couplings"].shape[1:]), np.float32)
        first, second = np.triu_indices(SITES, 1)
        couplings[first, second] = params["couplings"]
        couplings += couplings.transpose(1, 0, 3, 2)
        matrix = torch.from_numpy(np.ascontiguousarray(couplings.transpose(0, 2, 1, 3)))
        self.params = {"bias": torch.from_numpy(np.array(params["fields"])), "coupling_matrix": matrix}
        self.v = torch.nn.functional.one_hot(torch.from_numpy(data).long()).float()
        self.sampler = adabmdca.prepare_sampler("gibbs", torch.device("cpu"))

    def __call__(self, count):
        with torch.no_grad():
            for _ in range(count):
                self.v = self.sampler(self.v, self.params, 1)


def _fit(machine, start, data):
    center = pj.center(decay=0.0, activations=machine.activations)
    descent = pj.clip_by_global_norm(TINY), pj.sgd(RATE / TINY), pj.project(machine.zero_sum)
    estimator = pj.persistent_contrastive_divergence(machine, steps=STEPS)
    options = {"epochs": EPOCHS, "batch_size": BATCH, "key": jax.random.key(0)}
    return pj.fit(start, pj.chain(center, *descent), estimator, data, **options).params


def _rbms(start, data):
    visible, hidden = start["layers"]
    b, c, W = (torch.from_numpy(np.array(x)) for x in (visible["loc"], hidden["loc"], start["weights"][0]["matrix"]))
    params = rbms_potts.PBRBM(weight_matrix=W, vbias=b, hbias=c)
    updates = EPOCHS * (len(data) // BATCH)
    train_rbms(params, data, BATCH, updates, STEPS, RATE, after_update=rbms_zero_sum.ensure_zero_sum_gauge)
    layers = [{"loc": params.vbias.numpy()}, {"loc": params.hbias.numpy()}]
    return {"layers": layers, "weights": [{"matrix": params.weight_matrix.numpy()}]}
