"""Estimators: against closed forms, enumeration of small models, and laws."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from paysage_jax import (
    Model,
    TrainState,
    Weighted,
    contrastive_divergence,
    fit,
    loss_gradient,
    persistent_contrastive_divergence,
    rbm,
    sgd,
    train_step,
)
from tests.helpers.problems import assert_trees_close
from tests.test_phases import (
    HIDDEN,
    KEY,
    PARAMS,
    VISIBLE,
    closed_form,
    closed_form_of_complete_states,
    closed_form_of_one_phase,
    complete_energy,
    states,
    with_and_without_jit,
)

MODEL = rbm.RBM()

each_estimator = pytest.mark.parametrize(
    "estimator", [contrastive_divergence, persistent_contrastive_divergence], ids=["cd", "pcd"]
)


# --- estimators --------------------------------------------------------------------------------------


@jax.jit
def estimate(estimator, params, batch, estimator_state, key=KEY):
    return estimator.estimate(params, batch, estimator_state, key)


@jax.jit
def first_estimate(estimator, params, batch, key=KEY):
    return estimator.estimate(params, batch, estimator.init(params, batch, KEY), key)


def free_energies(params, v):
    """-b·v - Σ log(1 + exp(c + v W)) of every row, in float64."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    b, c, W, v = (np.asarray(x, np.float64) for x in (b, c, W, v))
    return -(v @ b) - np.logaddexp(0, c + v @ W).sum(axis=1)


def shift(params, v, key):
    """A deterministic transition: in every state the units are shifted by one."""
    del params, key
    return jnp.roll(v, 1, axis=1)


def draw(params, v, key):
    """Every state is shifted and gets a new draw in front, so it contains the draws of the last transitions."""
    del params
    return jnp.roll(v, 1, axis=1).at[:, 0].set(jax.random.uniform(key, (len(v),)))


SHIFTED, DRAWN = Model(MODEL.energy, shift), Model(lambda b, v: -(v @ b), draw)


@each_estimator
def test_a_pair_unpacks_and_reports_both_phases(estimator):
    init, estimate = estimator(SHIFTED)
    batch = states(6)
    samples = np.roll(batch, 1, axis=1)
    gradient, _, statistics = jax.jit(estimate)(PARAMS, batch, init(PARAMS, batch, KEY), KEY)
    assert_trees_close(gradient, closed_form(PARAMS, batch, samples))
    for phase, v in (("data", batch), ("model", samples)):
        energies = free_energies(PARAMS, v)
        np.testing.assert_allclose(getattr(statistics, f"{phase}_energy"), energies.mean(), rtol=1e-6)
        assert_trees_close(getattr(statistics, f"{phase}_gradient"), closed_form_of_one_phase(PARAMS, v))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_cd_k_makes_k_transitions_from_the_batch(steps):
    estimator = contrastive_divergence(SHIFTED, steps=steps)
    batch = states(6)
    estimator_state = estimator.init(PARAMS, batch, KEY)
    for _ in range(2):  # the second call starts from the batch again
        gradient, estimator_state, _ = estimate(estimator, PARAMS, batch, estimator_state)
        assert_trees_close(gradient, closed_form(PARAMS, batch, np.roll(batch, steps, axis=1)))


def test_pcd_k_is_k_calls_of_pcd_1():
    batch = states(6)

    def run(estimator, calls):
        chains = estimator.init(PARAMS, batch, KEY)
        for _ in range(calls):
            gradient, chains, _ = estimate(estimator, PARAMS, batch, chains)
        return gradient, chains

    at_once = run(persistent_contrastive_divergence(SHIFTED, steps=3), calls=1)
    in_turn = run(persistent_contrastive_divergence(SHIFTED), calls=3)
    chex.assert_trees_all_equal(at_once, in_turn)
    np.testing.assert_array_equal(at_once[1], np.roll(batch, 3, axis=1))


@each_estimator
def test_every_transition_has_a_separate_key(estimator):
    """The draws of a transition are in the states, whose mean is minus the gradient of the energy -v·b."""

    def draws(key):
        b, batch = np.zeros(VISIBLE, np.float32), np.zeros((1, VISIBLE), np.float32)
        statistics = first_estimate(estimator(DRAWN, steps=VISIBLE), b, batch, key)[2]
        return -statistics.model_gradient

    first, again, other = (draws(jax.random.key(seed)).tolist() for seed in (0, 0, 1))
    assert first == again
    assert len({*first, *other}) == 2 * VISIBLE


@pytest.mark.parametrize("num_chains", [None, 2, pytest.param(6, marks=pytest.mark.slow), 14])
def test_chains_start_from_the_first_batch_and_persist(num_chains):
    """With fewer or more chains than states in the batch; batches may differ in size."""
    estimator = persistent_contrastive_divergence(SHIFTED, num_chains=num_chains)
    first = states(6)
    expected = first[np.arange(num_chains or 6) % 6]
    state = estimator.init(PARAMS, first, KEY)
    np.testing.assert_array_equal(state, expected)
    for batch in (first, states(6, seed=1), states(2, seed=2)):
        expected = np.roll(expected, 1, axis=1)
        gradient, state, _ = estimate(estimator, PARAMS, batch, state)
        np.testing.assert_array_equal(state, expected)
        assert_trees_close(gradient, closed_form(PARAMS, batch, expected))


@each_estimator
def test_states_of_an_estimator_may_be_trees(estimator):
    def transition(params, state, key):
        return {"v": state["v"][::-1], "h": 1 - state["h"]}

    batch = {"v": states(5), "h": states(5, seed=1)[:, :HIDDEN]}
    gradient, _, _ = first_estimate(estimator(Model(complete_energy, transition)), PARAMS, batch)
    assert_trees_close(gradient, closed_form_of_complete_states(batch, transition(PARAMS, batch, KEY)))


@pytest.mark.parametrize(
    ("estimator", "dtype"),
    [
        (contrastive_divergence, np.int32),
        (persistent_contrastive_divergence, bool),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (contrastive_divergence, np.uint8),
                (contrastive_divergence, bool),
                (persistent_contrastive_divergence, np.int32),
                (persistent_contrastive_divergence, np.uint8),
            ]
        ),
    ],
)
def test_whole_numbers_as_data_and_floats_as_chains(estimator, dtype):
    def energy(params, v):
        return MODEL.energy(params, v.astype(float))

    def halve(params, v, key):
        return v.astype(float) / 2

    gradient, chains, _ = first_estimate(estimator(Model(energy, halve), steps=2), PARAMS, states(6).astype(dtype))
    assert_trees_close(gradient, closed_form(PARAMS, states(6), states(6) / 4))
    if estimator is persistent_contrastive_divergence:
        np.testing.assert_array_equal(chains, states(6) / 4)


@each_estimator
def test_steps_of_an_estimator_are_not_differentiated(estimator):
    """The chains depend on the parameters, through a transition that is smooth; only the energy's dependence counts."""

    def smooth(params, v, key):
        return MODEL.visible_mean(params, MODEL.hidden_mean(params, v))

    batch = states(6)
    gradient, _, _ = first_estimate(estimator(Model(MODEL.energy, smooth), steps=2), PARAMS, batch)
    samples = smooth(PARAMS, smooth(PARAMS, batch, KEY), KEY)
    assert_trees_close(gradient, closed_form(PARAMS, batch, samples))


@each_estimator
def test_equal_estimators_are_traced_once(estimator):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(pair, batch):
        return pair.estimate(PARAMS, batch, pair.init(PARAMS, batch, KEY), KEY)[0]

    for seed in (0, 1):
        traced_once(estimator(Model(MODEL.energy, shift)), states(6, seed))
    assert estimator(Model(MODEL.energy, shift)) == estimator(SHIFTED)
    assert estimator(SHIFTED) != estimator(SHIFTED, steps=2)


@each_estimator
def test_a_transition_that_changes_the_shape_is_an_error(estimator):
    pair = estimator(Model(MODEL.energy, lambda params, v, key: v[:, 1:]))
    with pytest.raises(
        ValueError, match=r"transition\(params, v, key\).*expected shape \(6, 4\) as in v, got \(6, 3\)"
    ):
        pair.estimate(PARAMS, states(6), pair.init(PARAMS, states(6), KEY), KEY)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: contrastive_divergence(SHIFTED, steps=0), ValueError, "steps must be a positive integer"),
        (lambda: contrastive_divergence(SHIFTED, steps=1.5), TypeError, "steps must be a positive integer"),
        (lambda: persistent_contrastive_divergence(SHIFTED, steps=0), ValueError, "steps must be a positive integer"),
        (lambda: persistent_contrastive_divergence(SHIFTED, 0), ValueError, "num_chains must be a positive integer"),
        (
            lambda: persistent_contrastive_divergence(SHIFTED, num_chains=3, chains=states(3)),
            ValueError,
            "expected num_chains or chains, got both",
        ),
        (lambda: persistent_contrastive_divergence(SHIFTED, chains=[None, "x"]), TypeError, "chains.*got str"),
        (lambda: contrastive_divergence(SHIFTED, energy_penalty=-1), ValueError, "energy_penalty must be in"),
        (lambda: persistent_contrastive_divergence(SHIFTED, 2.0), TypeError, "num_chains must be a positive integer"),
    ],
)
def test_wrong_numbers_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contrastive_divergence(None), "model must be a model, with energy, transition.*got None"),
        (lambda: contrastive_divergence(MODEL.energy), r"model must be a model.*; use Model\(energy, transition\)"),
        (lambda: contrastive_divergence(rbm.RBM), "model must be a model, got the class RBM: call it"),
        (lambda: Model(MODEL.energy, None), "Model: transition must be a function, got None"),
        (lambda: Model(rbm.RBM, shift), "Model: energy must be a function, got <class"),
        (lambda: Model(MODEL.energy, shift, 3), "Model: sample_hidden must be a function, got 3"),
    ],
)
def test_an_argument_that_is_not_a_model_is_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


# --- weights of the rows -----------------------------------------------------------------------------

COUNTS = np.array([2, 0, 1, 0, 2, 1])  # with mean 1


@each_estimator
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.int32, marks=pytest.mark.slow)])
def test_weights_are_repeated_rows(estimator, dtype):
    """In CD a sample has the weight of its initial row, in PCD the mean weight."""
    batch, samples = states(6), np.roll(states(6), 1, axis=1)
    repeated = np.repeat(samples, COUNTS, axis=0) if estimator is contrastive_divergence else samples
    expected = closed_form(PARAMS, np.repeat(batch, COUNTS, axis=0), repeated)
    gradient, _, statistics = first_estimate(estimator(SHIFTED), PARAMS, Weighted(batch, COUNTS.astype(dtype)))
    assert_trees_close(gradient, expected)
    for phase, v in (("data", np.repeat(batch, COUNTS, axis=0)), ("model", repeated)):
        energies = free_energies(PARAMS, v)
        np.testing.assert_allclose(getattr(statistics, f"{phase}_energy"), energies.mean(), rtol=1e-6)


@each_estimator
def test_weights_scale_the_gradient_of_a_batch_and_none_are_ones(estimator):
    estimator, weights = estimator(SHIFTED), np.random.default_rng(0).random(6).astype(np.float32)
    expected, _, _ = first_estimate(estimator, PARAMS, Weighted(states(6), weights))
    scaled, _, _ = first_estimate(estimator, PARAMS, Weighted(states(6), 7 * weights))
    assert_trees_close(scaled, jax.tree.map(lambda g: 7 * g, expected))
    expected, _, _ = first_estimate(estimator, PARAMS, states(6))
    for equal in (None, np.ones(6, np.float32)):
        assert_trees_close(first_estimate(estimator, PARAMS, Weighted(states(6), equal))[0], expected)


def test_weighted_rows_go_through_fit():
    """In memory and from a loader, they are the repeated rows of a plain run."""
    estimator = contrastive_divergence(SHIFTED)
    runs = {"epochs": 3, "key": KEY}
    expected = fit(PARAMS, sgd(0.1), estimator, np.repeat(states(6), COUNTS, axis=0), batch_size=6, **runs)
    data = Weighted(states(6), COUNTS.astype(np.float32))
    for source, options in ((data, {"batch_size": 6}), ([data], {})):
        result = fit(PARAMS, sgd(0.1), estimator, source, **options, **runs)
        assert_trees_close(result.params, expected.params)
        np.testing.assert_allclose(result.history["data_energy"], expected.history["data_energy"], rtol=1e-5)


@each_estimator
def test_wrong_weights_are_named_where_a_run_starts(estimator):
    estimator = estimator(SHIFTED)
    for weights, message in (
        (np.array([1, 1, -1]), "weights: expected nonnegative numbers, got -1 in row 2"),
        (np.zeros(3), "weights: expected some positive weight, all are 0"),
        (np.ones((3, 1)), r"weights: expected shape \(3,\), one for each row, got \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(PARAMS, sgd(0.1), estimator, Weighted(states(3), weights), batch_size=3, epochs=1, key=KEY)
    with pytest.raises(ValueError, match=r"weights \(2,\)"):
        fit(PARAMS, sgd(0.1), estimator, Weighted(states(3), np.ones(2)), batch_size=2, epochs=1, key=KEY)


# --- chains that are given ---------------------------------------------------------------------------


def test_chains_start_where_they_are_told():
    start = states(9, seed=3)
    estimator = persistent_contrastive_divergence(SHIFTED, chains=start)
    gradient, chains, _ = first_estimate(estimator, PARAMS, states(6))
    np.testing.assert_array_equal(chains, np.roll(start, 1, axis=1))
    assert_trees_close(gradient, closed_form(PARAMS, states(6), np.roll(start, 1, axis=1)))


def test_chains_that_were_given_can_be_given_again():
    """A step donates its chains, but not the argument `chains`."""
    estimator = persistent_contrastive_divergence(SHIFTED, chains=jnp.asarray(states(5)))
    step, optimizer = train_step(estimator, sgd(0.1)), sgd(0.1)
    ends = []
    for _ in range(2):
        params = jax.tree.map(jnp.array, PARAMS)
        state = TrainState(params, optimizer.init(params), estimator.init(params, states(6), KEY))
        ends.append(step(state, states(6), KEY)[0].params)
    chex.assert_trees_all_equal(*ends)


# --- data that leave units hidden: a deep Boltzmann machine ------------------------------------------

DBM = {
    "b": jnp.array([0.3, -0.5, 0.1]),
    "W": jnp.array(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32),
    "U": jnp.array(np.random.default_rng(1).normal(size=(2, 2)), jnp.float32),
}
DATA = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [1, 0, 1]], np.float32)
LAYERS = ((np.arange(16)[:, None] >> np.arange(4)) & 1).astype(np.float32)  # every state of both hidden layers


def dbm_energy(params, state):
    """E(v, h, g) = -b·v - v·W h - h·U g."""
    v, h, g = state["v"], state["h"], state["g"]
    return -(v @ params["b"]) - jnp.sum((v @ params["W"]) * h, axis=1) - jnp.sum((h @ params["U"]) * g, axis=1)


def with_every_layer(params, v):
    """Minus the energy of each row with each of the 16 hidden states: (rows, 16)."""

    def row(v):
        return -dbm_energy(params, {"v": jnp.tile(v[None], (16, 1)), "h": LAYERS[:, :2], "g": LAYERS[:, 2:]})

    return jax.vmap(row)(v)


def draw_layers(params, v, key):
    """Hidden layers from their exact conditional distribution, by enumeration."""
    drawn = jnp.asarray(LAYERS)[jax.random.categorical(key, with_every_layer(params, v), axis=1)]
    return {"v": v, "h": drawn[:, :2], "g": drawn[:, 2:]}


def resample(params, state, key):
    """A transition of the hidden layers only; the visible units do not change."""
    return draw_layers(params, state["v"], key)


@each_estimator
def test_data_with_drawn_hidden_units_give_the_gradient_of_the_free_energy(estimator):
    """Against the sum over all hidden states; in each of 5 runs within 5 standard errors of 4000 draws."""

    def mean_free_energy(params):
        return -jnp.mean(logsumexp(with_every_layer(params, DATA), axis=1))

    exact = jax.jit(jax.grad(mean_free_energy))(DBM)
    rows = np.tile(DATA, (1000, 1))
    estimator = estimator(Model(dbm_energy, resample, sample_hidden=draw_layers))
    for seed in range(5):
        _, _, statistics = first_estimate(estimator, DBM, rows, jax.random.key(seed))
        np.testing.assert_allclose(statistics.data_gradient["b"], exact["b"], atol=1e-5)
        for name in ("W", "U"):  # an element of v hᵀ or h gᵀ is 0 or 1, whose deviation is at most 1/2
            np.testing.assert_allclose(statistics.data_gradient[name], exact[name], atol=5 * 0.5 / 4000**0.5)


def test_samples_and_chains_start_with_the_drawn_hidden_units():
    def sample_hidden(params, v, key):
        return {"v": v, "h": MODEL.hidden_mean(params, v)}

    def transition(params, state, key):
        return {"v": state["v"][::-1], "h": 1 - state["h"]}

    batch = states(5)
    data = sample_hidden(PARAMS, batch, KEY)
    model = Model(complete_energy, transition, sample_hidden)
    expected = closed_form_of_complete_states(data, transition(PARAMS, data, KEY))
    for estimator in (
        contrastive_divergence(model),
        persistent_contrastive_divergence(model),
        persistent_contrastive_divergence(model, chains=data),
    ):
        gradient, state, _ = first_estimate(estimator, PARAMS, batch)
        assert_trees_close(gradient, expected)
        if state != ():
            chex.assert_trees_all_close(state, transition(PARAMS, data, KEY), rtol=1e-6)


@each_estimator
def test_drawing_and_transitions_have_keys_of_their_own(estimator):
    """The draws of both are in the states, whose mean is minus the gradient of the energy -v·b."""
    b, batch = np.zeros(VISIBLE, np.float32), np.zeros((1, VISIBLE), np.float32)
    model = dataclasses.replace(DRAWN, sample_hidden=draw)
    _, _, statistics = first_estimate(estimator(model, steps=VISIBLE), b, batch)
    drawn = [-statistics.data_gradient[0], *(-statistics.model_gradient)]
    assert len(set(map(float, drawn))) == 1 + VISIBLE


def test_drawing_hidden_units_is_not_differentiated():
    def size(params, sample_hidden):
        model = Model(complete_energy, lambda params, state, key: state, sample_hidden)
        _, _, statistics = contrastive_divergence(model).estimate(params, states(4), (), KEY)
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(statistics.data_gradient))

    def sample_hidden(params, v, key):
        return {"v": v, "h": MODEL.hidden_mean(params, v)}

    fixed = sample_hidden(PARAMS, states(4), KEY)
    through = jax.jit(jax.grad(lambda params: size(params, sample_hidden)))(PARAMS)
    assert_trees_close(through, jax.jit(jax.grad(lambda params: size(params, lambda *_: fixed)))(PARAMS))


@pytest.mark.parametrize("chains", [None, {"v": DATA, "h": DATA[:, :2], "g": DATA[:, :2]}])
def test_where_data_leave_units_hidden_the_error_names_sample_hidden(chains):
    model = Model(dbm_energy, resample)
    estimator = persistent_contrastive_divergence(model, chains=chains)
    with pytest.raises(Exception, match="sample_hidden="):
        fit(DBM, sgd(0.1), estimator, DATA, batch_size=2, epochs=1, key=KEY)
    with pytest.raises(Exception, match="sample_hidden="):
        contrastive_divergence(model).estimate(DBM, DATA, (), KEY)


# --- a penalty on the energies -----------------------------------------------------------------------


@each_estimator
@pytest.mark.parametrize("counts", [pytest.param(None, marks=pytest.mark.slow), COUNTS])
def test_the_penalty_is_that_of_both_phases_squares(estimator, counts):
    """For E = -v·b, the penalty is alpha (mean of E² in the data + in the model), with gradient alpha mean(-2 E v)."""
    b, alpha, batch = np.array([0.5, -1.0, 2.0, 0.3], np.float32), 0.7, states(6)
    estimator = estimator(Model(lambda b, v: -(v @ b), shift), energy_penalty=alpha)
    data = batch if counts is None else Weighted(batch, counts.astype(np.float32))
    gradient, _, statistics = first_estimate(estimator, b, data)

    model = np.roll(batch, 1, axis=1)
    of_data = np.ones(6) if counts is None else counts
    of_model = of_data if isinstance(estimator, contrastive_divergence) else np.ones(6)
    expected, penalty = np.zeros(4), 0.0
    for v, weights, sign in ((batch, of_data, 1), (model, of_model, -1)):
        energies = -(v.astype(np.float64) @ b)
        expected += np.average(-sign * v - 2 * alpha * energies[:, None] * v, axis=0, weights=weights)
        penalty += alpha * np.average(energies**2, weights=weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(statistics.energy_penalty, penalty, rtol=1e-5)


def test_the_penalty_is_in_the_history_if_there_is_one():
    estimator = contrastive_divergence(SHIFTED, energy_penalty=0.1)
    result = fit(PARAMS, sgd(0.1), estimator, states(6), batch_size=6, epochs=1, key=KEY)
    energies = (free_energies(PARAMS, v) for v in (states(6), np.roll(states(6), 1, axis=1)))
    penalty = sum(0.1 * np.mean(np.square(e)) for e in energies)
    np.testing.assert_allclose(result.history["energy_penalty"], [penalty], rtol=1e-5)
    _, _, statistics = first_estimate(contrastive_divergence(SHIFTED), PARAMS, states(6))
    assert statistics.energy_penalty is None


# --- states that do not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "dtype"),
    [
        (contrastive_divergence, np.int32),
        (persistent_contrastive_divergence, bool),
        pytest.param(contrastive_divergence, bool, marks=pytest.mark.slow),
        pytest.param(persistent_contrastive_divergence, np.int32, marks=pytest.mark.slow),
    ],
)
def test_data_between_integers_are_rejected(estimator, dtype):
    """A transition to integers would round the data before the first transition."""

    def transition(params, v, key):
        return (v.astype(float) > 0.5).astype(dtype)

    def energy(params, v):
        return MODEL.energy(params, v.astype(float))

    pair = estimator(Model(energy, transition))
    with pytest.raises(TypeError, match=r"v: float32 cannot be cast safely to (int32|bool), which transition"):
        first_estimate(pair, PARAMS, 0.3 * states(6))
    whole = states(6).astype(dtype)
    with pytest.raises(TypeError, match="integer_states=True"):
        first_estimate(pair, PARAMS, whole)
    pair = estimator(Model(energy, transition, integer_states=True))
    assert_trees_close(
        first_estimate(pair, PARAMS, whole)[0], closed_form(PARAMS, whole.astype(np.float32), whole.astype(np.float32))
    )


# --- an ordinary loss --------------------------------------------------------------------------------


def squares(params, batch):
    return jnp.mean((batch @ params - 1) ** 2)


@with_and_without_jit
def test_gradient_of_a_loss(jit):
    params, batch = jnp.arange(4.0), states(6)
    init, estimate = loss_gradient(squares)
    gradient, state, statistics = jit(estimate)(params, batch, init(params, batch, KEY), KEY)
    residuals = batch.astype(np.float64) @ np.arange(4.0) - 1
    np.testing.assert_allclose(gradient, 2 * batch.T @ residuals / 6, rtol=1e-6)
    np.testing.assert_allclose(statistics.loss, np.mean(residuals**2), rtol=1e-6)
    assert state == ()


def noisy(params, batch, key):
    return squares(params + jax.random.normal(key, params.shape), batch)


def noisy_by_keyword(params, batch, *, key):
    return noisy(params, batch, key)


def noisy_among_others(params, batch, **extra):
    return noisy(params, batch, extra["key"])


@pytest.mark.parametrize("loss", [noisy, noisy_by_keyword, noisy_among_others, jax.jit(noisy)])
def test_a_loss_may_take_the_key(loss):
    params, batch = jnp.arange(4.0), states(6)
    for key in (KEY, jax.random.key(1)):
        gradient, _, _ = estimate(loss_gradient(loss), params, batch, (), key)
        chex.assert_trees_all_close(gradient, gradient_of_noisy(params, batch, key), rtol=1e-6)


gradient_of_noisy = jax.jit(jax.grad(noisy))


def test_a_loss_of_complex_parameters_goes_down_to_its_solution():
    """|θ - c|² / 2 summed: the gradient is θ - c, and steps of sgd(1) end there at once."""
    goal = jnp.array([1 + 2j, -3j])

    def distance(theta, batch):
        return jnp.sum(jnp.abs(theta - goal) ** 2) / 2 * jnp.mean(batch)

    estimator, theta = loss_gradient(distance), jnp.array([0.5 + 0j, 1 + 1j])
    gradient, _, _ = estimate(estimator, theta, np.ones((2, 1), np.float32), ())
    np.testing.assert_allclose(gradient, theta - goal, rtol=1e-6)
    result = fit(theta, sgd(1.0), estimator, np.ones((2, 1)), batch_size=2, epochs=1, key=KEY)
    np.testing.assert_allclose(result.params, goal, atol=1e-6)


def test_a_loss_that_is_not_a_scalar_is_an_error():
    with pytest.raises(TypeError, match="scalar"):
        loss_gradient(lambda params, batch: batch @ params).estimate(jnp.ones(4), states(6), (), KEY)
