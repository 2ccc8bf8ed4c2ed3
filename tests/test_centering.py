"""The centred gradient: against the paper's covariances in float64, and by the symmetry it is made for."""

from functools import partial

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    Connection,
    Model,
    apply_updates,
    center,
    chain,
    contrastive_divergence,
    loss_gradient,
    sgd,
    skip_nonfinite,
)
from paysage_jax.states import PhaseStatistics
from tests.helpers.problems import assert_trees_close, poisoned, rbm_tree, scaled, step

PARAMS = rbm_tree()
KEY = jax.random.key(0)
ZEROS = jax.tree.map(np.zeros_like, PARAMS)

CONNECTIONS = {
    2: [(0, 1)],
    3: [(0, 1), (1, 2)],
    4: [(0, 1), (1, 2), (2, 3)],
    "skip connection": [(0, 1), (1, 2), (0, 2)],
}
SIZES = [5, 4, 3, 2]


def machine(connections, seed=0):
    """The parameters of a Boltzmann machine with these connections, and their specification for `center`."""
    rng = np.random.default_rng(seed)
    layers = 1 + max(map(max, connections))
    params = {
        "layers": [{"loc": rng.normal(size=n)} for n in SIZES[:layers]],
        "weights": [{"matrix": rng.normal(size=(SIZES[i], SIZES[j]))} for i, j in connections],
    }
    names = [(f"weights/{k}/matrix", f"layers/{i}/loc", f"layers/{j}/loc") for k, (i, j) in enumerate(connections)]
    return jax.tree.map(jnp.float32, params), names


def energy_of(connections):
    def energy(params, state):
        biases = sum(x @ layer["loc"] for x, layer in zip(state, params["layers"], strict=True))
        pairs = zip(connections, params["weights"], strict=True)
        return -biases - sum(jnp.sum((state[i] @ w["matrix"]) * state[j], axis=1) for (i, j), w in pairs)

    return energy


def draw_states(layers, rows, seed, mean=0.5):
    rng = np.random.default_rng(seed)
    return [(rng.random((rows, n)) < mean).astype(np.float32) for n in SIZES[:layers]]


def centred(connections, data, model, offsets):
    """Melchior, Fischer & Wiskott, from the states, in float64: covariances around the offsets."""
    data, model = ([x.astype(np.float64) for x in states] for states in (data, model))

    def covariance(states, i, j):
        return (states[i] - offsets[i]).T @ (states[j] - offsets[j]) / len(states[i])

    W = [covariance(model, i, j) - covariance(data, i, j) for i, j in connections]
    b = [m.mean(0) - d.mean(0) for d, m in zip(data, model, strict=True)]
    for (i, j), dW in zip(connections, W, strict=True):
        b[i] = b[i] - dW @ offsets[j]
        b[j] = b[j] - dW.T @ offsets[i]
    return {"layers": [{"loc": x} for x in b], "weights": [{"matrix": x} for x in W]}


@pytest.mark.parametrize("enhanced", [False, True], ids=["centred", "enhanced"])
@pytest.mark.parametrize("kind", CONNECTIONS)
def test_center_is_the_centred_gradient_of_the_paper(kind, enhanced):
    """Over three steps of an estimator, with offsets that are running means of the activations."""
    connections, decay = CONNECTIONS[kind], 0.7

    def mean_of_two(data, model):
        return (data + model) / 2

    def running_mean(offset, activation):
        return decay * offset + (1 - decay) * activation

    params, names = machine(connections)
    optimizer = center(decay, enhanced, names if kind == "skip connection" else None)
    layers = len(params["layers"])

    @jax.jit
    def estimate_and_center(data, model, state):
        estimator = contrastive_divergence(Model(energy_of(connections), lambda params, v, key: model))
        gradient, _, statistics = estimator.estimate(params, data, (), KEY)
        return optimizer.update(gradient, state, params, statistics=statistics)

    state, offsets = optimizer.init(params), None
    for t in range(3):
        data, model = draw_states(layers, 6, seed=t, mean=0.8), draw_states(layers, 6, seed=10 + t, mean=0.4)
        activations = [x.mean(0) for x in (jax.tree.map(mean_of_two, data, model) if enhanced else data)]
        offsets = activations if t == 0 else jax.tree.map(running_mean, offsets, activations)
        updates, state = estimate_and_center(data, model, state)
        assert_trees_close(updates, centred(connections, data, model, offsets))
    assert_trees_close(state.offsets, {f"layers/{i}/loc": offset for i, offset in enumerate(offsets)})
    assert int(state.step) == 3


def test_the_enhanced_gradient_is_a_difference_of_covariances():
    """Cho, Raiko & Ilin (2013): dW = Cov_data - Cov_model, each around its own mean, minus the part of the biases."""
    params, _ = machine(CONNECTIONS[2])
    (v, h), (v_model, h_model) = draw_states(2, 6, seed=0, mean=0.8), draw_states(2, 6, seed=1, mean=0.3)
    statistics = statistics_of(params, [v, h], [v_model, h_model])
    optimizer = center(0.0, enhanced=True)
    updates, _ = first_update_with(optimizer, params, statistics)

    def covariance(v, h):
        return v.T @ h / len(v) - np.outer(v.mean(0), h.mean(0))

    dW = covariance(v_model, h_model) - covariance(v, h)
    db = v_model.mean(0) - v.mean(0) - dW @ (h.mean(0) + h_model.mean(0)) / 2
    dc = h_model.mean(0) - h.mean(0) - dW.T @ (v.mean(0) + v_model.mean(0)) / 2
    assert_trees_close(updates, {"layers": [{"loc": db}, {"loc": dc}], "weights": [{"matrix": dW}]})


pair_energy = energy_of(CONNECTIONS[2])


@partial(jax.jit, static_argnames="energy")
def statistics_of(params, data, model, energy=pair_energy):
    """Both phases, directly from autodiff."""
    (data_energy, data_gradient), (model_energy, model_gradient) = (
        jax.value_and_grad(lambda params, v=v: jnp.mean(energy(params, v)))(params) for v in (data, model)
    )
    return PhaseStatistics(data_energy, model_energy, data_gradient, model_gradient)


def gradient_of(statistics):
    return jax.tree.map(jnp.subtract, statistics.data_gradient, statistics.model_gradient)


@jax.jit
def first_update_with(optimizer, params, statistics):
    """The first update, and the gradient that it comes from."""
    gradient = gradient_of(statistics)
    return optimizer.update(gradient, optimizer.init(params), params, statistics=statistics)[0], gradient


def free_energy(params, v, mu=0.0, lam=0.0):
    """-log Σ_h exp(-E) by counting all h, with E = -(v-μ)·b - (h-λ)·c - (v-μ)·W(h-λ)."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    h = ((np.arange(2 ** len(c))[:, None] >> np.arange(len(c))) & 1).astype(np.float32) - lam
    v = v - mu
    minus_energies = (v @ b)[:, None] + (h @ c)[None, :] + v @ W @ h.T
    return -jax.scipy.special.logsumexp(minus_energies, axis=1)


@hypothesis.given(seed=st.integers(0, 1000))
def test_a_centred_step_is_a_plain_step_of_the_reparametrised_machine(seed):
    """E = -(v-μ)·b - (h-λ)·c - (v-μ)·W(h-λ): a plain step in its parameters, mapped back, is the centred step."""
    params, _ = machine(CONNECTIONS[2], seed)
    v_data, v_model = (draw_states(1, 6, seed + 1, 0.8)[0], draw_states(1, 6, seed + 2, 0.3)[0])
    expected, actual = both_steps(params, v_data, v_model)
    assert_trees_close(actual, expected, atol=5e-6)


@jax.jit
def both_steps(params, v_data, v_model):
    statistics = statistics_of(params, v_data, v_model, free_energy)
    mu, lam = (-layer["loc"] for layer in statistics.data_gradient["layers"])

    def shifted(params, sign):
        """To the parameters of the reparametrised machine (+1), and back (-1)."""
        (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
        return {
            "layers": [{"loc": b + sign * (W @ lam)}, {"loc": c + sign * (W.T @ mu)}],
            "weights": params["weights"],
        }

    def reparametrised_energy(params, v):
        return free_energy(params, v, mu[None], lam[None])

    reparametrised = shifted(params, 1.0)
    plain = gradient_of(statistics_of(reparametrised, v_data, v_model, reparametrised_energy))
    expected = shifted(jax.tree.map(lambda p, g: p - 0.3 * g, reparametrised, plain), -1.0)

    optimizer = chain(center(), sgd(0.3))
    state = optimizer.init(params)
    updates, _ = optimizer.update(gradient_of(statistics), state, params, statistics=statistics)
    return expected, apply_updates(params, updates)


def flip_visible(params):
    """The same machine for visible units 1 - v."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    return {"layers": [{"loc": -b}, {"loc": c + jnp.sum(W, 0)}], "weights": [{"matrix": -W}]}


def flip_hidden(params):
    """The same machine for hidden units 1 - h."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    return {"layers": [{"loc": b + jnp.sum(W, 1)}, {"loc": -c}], "weights": [{"matrix": -W}]}


@jax.jit
def train_on(optimizer, params, data, model):
    """The parameters after a step on each of the pairs of complete states."""

    def train(carry, pair):
        state, params = carry
        statistics = statistics_of(params, *pair)
        return step(optimizer, gradient_of(statistics), state, params, statistics=statistics)[1:], None

    return jax.lax.scan(train, (optimizer.init(params), params), (data, model))[0][1]


@pytest.mark.parametrize("enhanced", [False, True], ids=["centred", "enhanced"])
@pytest.mark.parametrize(("flip", "layer"), [(flip_visible, 0), (flip_hidden, 1)], ids=["visible", "hidden"])
def test_a_flip_of_the_data_mirrors_a_centred_training(flip, layer, enhanced):
    """Trained on 1 - v from the flipped parameters, a centred machine stays the flipped one: that is why digits and

    inverted digits train alike. The plain gradient does not have this symmetry.
    """
    params, _ = machine(CONNECTIONS[2])
    data, model = (
        [np.stack(x) for x in zip(*(draw_states(2, 6, seed + t, mean) for t in range(10)), strict=True)]
        for seed, mean in ((0, 0.8), (10, 0.4))
    )
    flipped_data, flipped_model = ([1 - x if i == layer else x for i, x in enumerate(v)] for v in (data, model))

    def distance(optimizer):
        trained = flip(train_on(optimizer, params, data, model))
        mirrored = train_on(optimizer, flip(params), flipped_data, flipped_model)
        differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), trained, mirrored)
        return max(map(float, jax.tree.leaves(differences)))

    assert distance(chain(center(0.9, enhanced), sgd(0.1))) < 1e-5
    assert distance(sgd(0.1)) > 0.1


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_without_offsets_it_is_the_plain_gradient(kind):
    """Layers that are silent in the data have offsets of zero."""
    params, names = machine(CONNECTIONS[kind])
    layers = len(params["layers"])
    silent, model = (draw_states(layers, 6, seed=0, mean=mean) for mean in (0.0, 0.5))
    statistics = statistics_of(params, silent, model, energy_of(CONNECTIONS[kind]))
    optimizer = center(connections=names)
    updates, gradient = first_update_with(optimizer, params, statistics)
    chex.assert_trees_all_equal(updates, gradient)


def test_explicit_connections_on_a_tree_of_ones_own():
    params, _ = machine(CONNECTIONS[2])
    statistics = statistics_of(params, draw_states(2, 6, seed=0), draw_states(2, 6, seed=1))

    def renamed(tree):
        (b, c), W = (layer["loc"] for layer in tree["layers"]), tree["weights"][0]["matrix"]
        return {"W": W, "a": {"bias": b}, "temperature": jnp.ones(()), "z": c}

    def updates_of(optimizer, rename=lambda tree: tree):
        mine = statistics._replace(
            data_gradient=rename(statistics.data_gradient), model_gradient=rename(statistics.model_gradient)
        )
        state = optimizer.init(rename(params))
        return optimizer.update(rename(gradient_of(statistics)), state, rename(params), statistics=mine)[0]

    expected = renamed(updates_of(center()))
    for connection in (("W", "a/bias", "z"), Connection(weight="W", left="a/bias", right="z")):
        chex.assert_trees_all_equal(updates_of(center(connections=[connection]), renamed), expected)


def test_offsets_of_bfloat16_parameters_are_float32():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    optimizer = center()
    state = optimizer.init(params)
    statistics = PhaseStatistics(None, None, params, params)
    updates, after = optimizer.update(params, state, params, statistics=statistics)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {offset.dtype for offset in state.offsets.values()} == {np.dtype("float32")}


def test_a_new_decay_or_batch_does_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(optimizer, gradient):
        statistics = PhaseStatistics(None, None, gradient, ZEROS)
        return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS, statistics=statistics)[0]

    for decay in (0.9, 0.99):
        traced_once(chain(center(decay), sgd(decay)), scaled(PARAMS, decay))


def test_a_skipped_gradient_leaves_the_offsets_alone():
    optimizer = skip_nonfinite(chain(center(), sgd(0.1)))
    state = optimizer.init(PARAMS)
    bad = poisoned(PARAMS, np.nan)
    _, after = optimizer.update(bad, state, PARAMS, statistics=PhaseStatistics(None, None, bad, bad))
    chex.assert_trees_all_equal(after.inner, state.inner)


# --- mistakes ----------------------------------------------------------------------------------------


def two_layers(first, second, matrix):
    return {
        "layers": [{"loc": jnp.zeros(first)}, {"loc": jnp.zeros(second)}],
        "weights": [{"matrix": jnp.zeros(matrix)}],
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: center(1.0), "decay must be in"),
        (lambda: center().init({"a": jnp.ones(2)}), r"center: no weights among the leaves \['a'\]"),
        (lambda: center(connections=[]).init(PARAMS), "center: no weights among the leaves"),
        (
            lambda: center(connections=[("weights/0/matrix", "layers/0/loc", "h")]).init(PARAMS),
            "center: no leaf h among .*layers/0/loc",
        ),
        (
            lambda: center().init(two_layers(2, 3, (3, 2))),
            r"center: weights/0/matrix of shape \(3, 2\) does not connect .*layers/1/loc, of shapes \(2, 3\)",
        ),
        (lambda: center().init(two_layers((), 3, (3,))), r"of shape \(3,\) does not connect"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_center_needs_the_statistics_of_two_phases():
    optimizer = center()
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"update\(..., statistics=...\) from a two-phase estimator, got NoneType"):
        optimizer.update(PARAMS, state, PARAMS)
    squares = loss_gradient(lambda params, batch: sum(jnp.sum(p**2) for p in jax.tree.leaves(params)))
    gradient, _, statistics = squares.estimate(PARAMS, None, (), KEY)
    with pytest.raises(ValueError, match="from a two-phase estimator, got LossStatistics"):
        optimizer.update(gradient, state, PARAMS, statistics=statistics)


def test_leaves_that_connect_nothing_pass():
    params = two_layers(2, 3, (2, 3)) | {"more": jnp.ones(2, int)}
    optimizer = center()
    statistics = PhaseStatistics(0.0, 0.0, params, params)
    updates, _ = optimizer.update(params, optimizer.init(params), statistics=statistics)
    chex.assert_trees_all_equal(updates["more"], params["more"])
