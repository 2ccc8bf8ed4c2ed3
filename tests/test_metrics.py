"""Metrics against their formulas in NumPy, the history, and early stopping against plain Python."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    Model,
    Outcome,
    TrainState,
    Weighted,
    adam,
    chain,
    early_stopping,
    fit,
    free_energy_gap,
    per_epoch,
    power_law_decay,
    pseudo_log_likelihood,
    rbm,
    reconstruction_error,
    sgd,
    track_convergence,
)
from paysage_jax._train.history import History
from paysage_jax.extend import Estimator, Transformation
from tests.helpers.runs import (
    DATA,
    KEY,
    KINDS,
    PARAMS,
    ROWS,
    a_draw,
    assert_identical,
    batches_of,
    each_kind,
    regression,
    squares,
    stopping,
)

MODEL = rbm.RBM()

in_memory = KINDS["in memory"]
RUN = dict(epochs=2, batch_size=ROWS, key=KEY)  # one step an epoch: less to compile

# --- ready metrics -----------------------------------------------------------------------------------

rng = np.random.default_rng(1)
V = (rng.random((7, 5)) < 0.4).astype(np.float32)
B, C, W = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (5, 3, (5, 3)))
MACHINE = TrainState({"layers": [{"loc": B}, {"loc": C}], "weights": [{"matrix": 2 * W}]}, (), ())


def free_energy(v):
    """-log Σ_h exp(b·v + c·h + v·W h), summed over the states h one by one."""
    b, c, w = map(np.float64, (B, C, 2 * W))
    hidden = np.array(list(np.ndindex(2, 2, 2)))
    exponents = v @ b + (c + v @ w) @ hidden.T
    return -np.log(np.sum(np.exp(exponents)))


def test_pseudo_log_likelihood_is_in_the_mean_over_draws_that_of_all_units():
    """Σᵢ log p(vᵢ | other units), with p(vᵢ | other units) = e^-F(v) / (e^-F(v) + e^-F(v with unit i flipped))."""
    exact = 0.0
    for v in np.float64(V):
        for i in range(5):
            flipped = v.copy()
            flipped[i] = 1 - v[i]
            e, e_flipped = np.exp(-free_energy(v)), np.exp(-free_energy(flipped))
            exact += np.log(e / (e + e_flipped)) / len(V)
    metric = pseudo_log_likelihood(MODEL, V)
    draws = jax.jit(jax.vmap(partial(metric, MACHINE)))(jax.random.split(KEY, 20000))
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - exact) < 4 * error
    assert error < 0.003 * abs(exact)  # so that a factor is noticed


def test_reconstruction_error_is_the_mean_square_over_rows_and_units():
    v = {"a": V, "b": rng.normal(size=(7, 2, 3)).astype(np.float32)}
    noise = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), v)

    def transition(params, v, key):
        return jax.tree.map(lambda x, n: x + params * n, v, noise)

    expected = 0.25 * sum(np.sum(np.float64(n) ** 2) for n in noise.values()) / (7 * 5 + 7 * 6)
    error = reconstruction_error(Model(MODEL.energy, transition), v)(TrainState(jnp.float32(0.5), (), ()), KEY)
    np.testing.assert_allclose(error, expected, rtol=1e-6)


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_reconstruction_error_of_categories_is_the_share_of_the_units_in_another_state(one_hot):
    v = np.random.default_rng(3).integers(0, 4, size=(6, 5))
    states = np.eye(4, dtype=np.float32)[v] if one_hot else v
    model = rbm.PottsModel(4)
    params = model.init(v)
    weights = np.arange(6.0)
    moved = np.asarray(model.transition(params, states, KEY))
    wrong = (moved.argmax(axis=2) if one_hot else moved) != v
    error = reconstruction_error(model, Weighted(states, weights))(TrainState(params, (), ()), KEY)
    np.testing.assert_allclose(error, np.average(wrong.mean(axis=1), weights=weights), rtol=1e-6)


def test_free_energy_gap_is_validation_minus_training():
    train, validation = V[:4], V[4:]
    energies = np.array([free_energy(v) for v in np.float64(V)])
    gap = free_energy_gap(MODEL, train, validation)(MACHINE, KEY)
    np.testing.assert_allclose(gap, energies[4:].mean() - energies[:4].mean(), rtol=1e-5)


# --- the history -------------------------------------------------------------------------------------


def weights(state, key):
    return state.params["w"]


def count(state, key):
    return jnp.sum(state.params["w"] > 0)


METRICS = {"weights": weights, "count": count, "draw": a_draw}


@each_kind
def test_history_holds_the_metrics_of_every_second_epoch(kind):
    data, options = kind(DATA)
    run = dict(key=KEY, shuffle=False, metrics=METRICS, metrics_every=2, **options)
    history = fit(PARAMS, adam(0.1), regression, data, epochs=5, **run).history
    np.testing.assert_array_equal(history["epoch"], [2, 4])
    chex.assert_shape((history["weights"], history["count"], history["draw"]), [(2, 3), (2,), (2,)])
    assert history["draw"][0] != history["draw"][1]
    for i, epochs in enumerate((2, 4)):
        shorter = fit(PARAMS, adam(0.1), regression, data, epochs=epochs, **run)
        np.testing.assert_array_equal(history["weights"][i], weights(shorter, None))
        np.testing.assert_array_equal(history["count"][i], count(shorter, None))
    assert jnp.any(history["weights"][0] != history["weights"][1])


@each_kind
def test_a_history_ends_with_the_run(kind):
    data, options = kind(DATA)
    optimizer = chain(sgd(per_epoch(power_law_decay(0.1, decay_rate=1e9))), track_convergence(1e-6))
    result = fit(PARAMS, optimizer, regression, data, epochs=6, key=KEY, shuffle=False, metrics=METRICS, **options)
    assert result.outcome == Outcome.CONVERGED
    assert int(result.epochs_done) == 2
    np.testing.assert_array_equal(result.history["epoch"], [1, 2])
    assert np.all(np.isfinite(result.history["weights"]))


@each_kind
def test_the_history_has_the_mean_loss_over_the_rows_of_each_epoch_and_the_applied_learning_rate(kind):
    """A loop in float64; the last batch has three rows and is weighted by them."""
    data, options = kind(DATA)
    optimizer = sgd(per_epoch(power_law_decay(0.1, decay_rate=1.0)))
    history = fit(PARAMS, optimizer, regression, data, epochs=3, key=KEY, shuffle=False, **options).history
    w, b, losses, rates = np.zeros(3), 1.0, [], []
    for epoch in range(3):
        rates.append(0.1 / (1 + epoch))
        total = 0.0
        for batch in batches_of(jax.tree.map(np.float64, DATA)):
            residuals = batch["x"] @ w + b - batch["y"]
            total += np.sum(residuals**2)
            w = w - rates[-1] * 2 * batch["x"].T @ residuals / len(residuals)
            b = b - rates[-1] * 2 * residuals.mean()
        losses.append(total / ROWS)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(history["learning_rate"], rates, rtol=1e-6)
    np.testing.assert_array_equal(history["epoch"], [1, 2, 3])


class Talkative(Estimator):
    """An estimator whose statistics have any names and kinds."""

    def init(self, params, batch, key):
        return ()

    def estimate(self, params, batch, estimator_state, key):
        statistics = {"epoch": jnp.float32(-7), "half": jnp.bfloat16(0.5), "rows": jnp.int32(5), "vector": jnp.ones(2)}
        return jax.tree.map(jnp.ones_like, params), (), statistics | {"learning_rate": jnp.float32(3)}


def test_of_the_statistics_the_floating_scalars_are_kept_and_a_metric_goes_before_them():
    history = fit(PARAMS, sgd(0.1), Talkative(), DATA, **RUN).history
    assert history.keys() == {"epoch", "half", "learning_rate"}
    assert history["half"].tolist() == [0.5, 0.5]
    assert history["half"].dtype == np.float32
    assert history["epoch"].tolist() == [1, 2]
    metrics = {"half": lambda state, key: jnp.ones(2, jnp.uint8), "learning_rate": lambda state, key: 4.0}
    history = fit(PARAMS, sgd(0.1), Talkative(), DATA, metrics=metrics, **RUN).history
    assert history["half"].tolist() == [[1, 1], [1, 1]]
    assert history["learning_rate"].tolist() == [4, 4]


class TwoRates(Transformation):
    """Gradient descent whose state also has rates that are not scalars."""

    def init(self, params):
        return [sgd(0.1).init(params), sgd(0.2).init(params), sgd(0.3).init(params)._replace(learning_rate=params)]

    def apply(self, updates, state, params, **extra):
        return jax.tree.map(lambda g: -0.1 * g, updates), state


def test_several_learning_rates_are_a_row():
    history = fit(PARAMS, TwoRates(), regression, DATA, **RUN).history
    np.testing.assert_allclose(history["learning_rate"], [[0.1, 0.2]] * 2, rtol=1e-6)


ANY = {
    "half": lambda state, key: state.params["w"].astype(jnp.bfloat16),
    "complex": lambda state, key: jax.lax.complex(state.params["w"], -state.params["w"]),
    "tree": lambda state, key: ({"byte": jnp.uint8(200), "flag": state.params["w"] > 0}, None, [jnp.zeros((0, 2))]),
    "python": lambda state, key: 3,
}


def test_a_metric_may_be_any_tree_of_any_dtype_and_a_run_with_it_is_resumed():
    run = partial(fit, PARAMS, adam(0.1), regression, DATA, batch_size=ROWS, key=KEY, metrics=ANY)
    whole = run(epochs=3)
    history = whole.history
    assert history["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(history["half"][-1], whole.params["w"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(history["complex"][-1], jax.lax.complex(whole.params["w"], -whole.params["w"]))
    tree, nothing, (empty,) = history["tree"]
    assert nothing is None
    assert empty.shape == (3, 0, 2)
    assert tree["byte"].tolist() == [200] * 3
    np.testing.assert_array_equal(tree["flag"][-1], whole.params["w"] > 0)
    assert history["python"].tolist() == [3] * 3
    assert_identical(run(epochs=3, resume=run(epochs=1)), whole)


def test_rows_never_reached_under_vmap_are_told_by_their_epoch():
    """NaN for dtypes that have it; bools and integers do not."""
    kinds = {
        "real": lambda state, key: state.params["w"],
        "complex": lambda state, key: jax.lax.complex(state.params["w"], state.params["w"]),
        "flag": lambda state, key: jnp.array(True),
        "unsigned": lambda state, key: {"tree": (jnp.ones((2, 1), jnp.uint8),)},
    }

    def run(tolerance):
        optimizer = chain(sgd(per_epoch(power_law_decay(0.1, decay_rate=1e9))), track_convergence(tolerance))
        return fit(PARAMS, optimizer, regression, DATA, epochs=4, batch_size=ROWS, key=KEY, metrics=kinds)

    history = jax.vmap(run)(jnp.array([1e-6, 0.0])).history
    np.testing.assert_array_equal(history["epoch"], [[1, 2, -1, -1], [1, 2, 3, 4]])
    assert np.all(np.isnan(history["real"]) == (history["epoch"] < 0)[..., None])
    assert np.all(np.isnan(history["complex"]) == (history["epoch"] < 0)[..., None])
    assert np.all(history["flag"] == (history["epoch"] > 0))
    assert history["flag"].dtype == bool
    np.testing.assert_array_equal(history["unsigned"]["tree"][0][0, :, 0, 0], [1, 1, 255, 255])


def test_what_a_history_has_given_out_stays_and_cannot_be_written_to():
    history = History({"epoch": np.empty((0,), np.int32)})
    given = []
    for i in range(200):
        history.extend({"epoch": np.array([i, -1])}, 1)
        given.append(history.arrays()["epoch"])
    for i, rows in enumerate(given):
        np.testing.assert_array_equal(rows, np.arange(i + 1))
    with pytest.raises(ValueError, match="read-only"):
        given[-1][0] = 3


# --- what a metric is given --------------------------------------------------------------------------


@each_kind
def test_a_metric_is_given_the_whole_state(kind):
    def steps(state, key):
        assert isinstance(state, TrainState)
        return state.optimizer_state.step + state.estimator_state[0]

    class Counting(Estimator):
        def init(self, params, batch, key):
            return (jnp.int32(100),)

        def estimate(self, params, batch, estimator_state, key):
            gradient, _, statistics = regression.estimate(params, batch, (), key)
            return gradient, (estimator_state[0] + 100,), statistics

    data, size = kind(DATA)
    result = fit(PARAMS, sgd(0.1), Counting(), data, epochs=2, key=KEY, metrics={"steps": steps}, **size)
    assert result.history["steps"].tolist() == [605, 1110]
    assert steps(result.state, None) == 1110


def test_a_metric_holds_its_data():
    """The parameters of the run, or others."""

    def loss(state, key, data):
        return squares(state.params, data)

    held = {"full": DATA, "other": jax.tree.map(lambda x: x[:7], DATA)}
    metrics = {name: partial(loss, data=data) for name, data in held.items()}
    result = fit(PARAMS, sgd(0.1), regression, DATA, metrics=metrics, **RUN)
    for name, data in held.items():
        np.testing.assert_allclose(result.history[name][-1], squares(result.params, data), rtol=1e-6)


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ([a_draw], TypeError, r"metrics must be a dict of name -> metric\(state, key\), got list"),
        ({3: a_draw}, TypeError, r"metrics\[3\] must be a function"),
        ({"a": 3}, TypeError, r"metrics\['a'\] must be a function metric\(state, key\), got 3"),
        ({"a": lambda state: 1.0}, TypeError, r"metrics\['a'\].*too many positional arguments"),
        ({"a": lambda state, key, z: 1.0}, TypeError, r"metrics\['a'\].*missing a required argument: 'z'"),
        ({"a": lambda state, *, key: 1.0}, TypeError, r"metrics\['a'\].*too many positional arguments"),
        ({"a": max}, TypeError, r"metrics\['a'\].*no signature"),
        ({"a": lambda state, key: "text"}, TypeError, r"\['a'\] must return arrays of numbers, got 'text'"),
        ({"epoch": a_draw}, ValueError, "the name 'epoch' is reserved"),
    ],
)
def test_wrong_metrics_are_named(metrics, error, message):
    with pytest.raises(error, match=message):
        fit(PARAMS, sgd(0.1), regression, DATA, metrics=metrics, **RUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(metrics={"draw": weights}), "metric draw of resume"),
        (dict(metrics={"draw": count}), "metric draw of resume"),
        (dict(metrics_every=2), "expected metrics_every=1, as in resume, got 2"),
    ],
    ids=["another shape", "another dtype", "another rhythm"],
)
def test_metrics_changed_on_resume_are_an_error(change, message):
    run = dict(batch_size=ROWS, key=KEY, metrics={"draw": a_draw})
    first = fit(PARAMS, sgd(0.1), regression, DATA, epochs=2, **run)
    with pytest.raises(ValueError, match=message):
        fit(None, sgd(0.1), regression, DATA, epochs=4, resume=first, **(run | change))


# --- early stopping ----------------------------------------------------------------------------------


@jax.jit
def after_each(stop, values):
    """(best epoch, value and params, measurements waited, gave up) after each value; the params are the epoch."""

    def scanned(best, epoch_and_value):
        epoch, value = epoch_and_value
        best = stop.update(best, {"p": epoch}, {"epoch": epoch, "m": value})
        return best, (best.epoch, best.value, best.params["p"], best.waited, stop.should_stop(best))

    return jax.lax.scan(scanned, stop.start({"p": jnp.int32(0)}), (jnp.arange(1, 1 + len(values)), values))[1]


@pytest.mark.parametrize("maximize", [False, True])
def test_early_stopping_is_the_loop_that_one_writes_by_hand(maximize):
    generator = np.random.default_rng(2)
    for _ in range(30):
        patience, least = int(generator.integers(1, 5)), float(generator.choice([0.0, 0.5]))
        values = generator.choice([-np.inf, -1, 0, 0.25, 1, 3, np.inf, np.nan], size=12).astype(np.float32)
        stop = early_stopping("m", patience=patience, min_delta=least, maximize=maximize)
        epochs, bests, params, waited, gave_up = after_each(stop, values)
        best, best_epoch, waits = None, 0, 0
        for i, value in enumerate(values.tolist()):
            with np.errstate(invalid="ignore"):
                gain = np.nan if best is None else (value - best) * (1 if maximize else -1)
            if not np.isnan(value) and (best is None or gain > least):
                best, best_epoch, waits = value, i + 1, 0
            else:
                waits += 1
            assert (int(epochs[i]), int(params[i]), int(waited[i])) == (best_epoch, best_epoch, waits)
            assert best is None or bests[i] == best
            assert bool(gave_up[i]) == (waits >= patience)


@each_kind
def test_a_run_stops_when_its_patience_ends_and_gives_back_the_best_parameters(kind):
    """The loss is made worse from the fifth epoch on by steps in the wrong direction, which a schedule cannot have."""

    class Turning(Transformation):
        def init(self, params):
            return jnp.int32(0)

        def apply(self, updates, state, params, **extra):
            sign = jnp.where(state < 20, -0.05, 0.3)
            return jax.tree.map(lambda g: sign * g, updates), state + 1

    data, size = kind(DATA)
    run = partial(fit, PARAMS, Turning(), regression, data, key=KEY, early_stopping=stopping(3), **size)
    result = run(epochs=50)
    losses = result.history["loss"]
    best = int(np.argmin(losses)) + 1
    assert best >= 3
    assert int(result.epochs_done) == best + 3
    assert result.outcome == Outcome.NOT_IMPROVING
    assert int(result.best.epoch) == best
    assert result.best.value == losses.min()
    chex.assert_trees_all_equal(result.best.params, run(epochs=best).params)
    assert jnp.any(result.best.params["w"] != result.params["w"])


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (None, ValueError, r"no metric 'm'; the history has \['epoch', 'learning_rate', 'loss'\]"),
        (weights, ValueError, r"early_stopping: m: expected a scalar, got shape \(3,\)"),
        (lambda state, key: state.params, TypeError, "early_stopping: m: expected a real scalar"),
        (lambda state, key: jnp.complex64(1), TypeError, "early_stopping: m: expected a real scalar"),
    ],
)
def test_a_metric_that_cannot_stop_a_run_is_named(metric, error, message):
    metrics = {} if metric is None else {"m": metric}
    with pytest.raises(error, match=message):
        fit(PARAMS, sgd(0.1), regression, DATA, metrics=metrics, early_stopping=early_stopping("m"), **RUN)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(patience=0), ValueError, "early_stopping: patience must be a positive integer"),
        (dict(patience=1.5), TypeError, "early_stopping: patience must be a positive integer"),
        (dict(min_delta=-1.0), ValueError, "early_stopping: min_delta must be in"),
        (dict(min_delta=np.nan), ValueError, "early_stopping: min_delta must be in"),
    ],
)
def test_wrong_numbers_of_early_stopping_are_named(options, error, message):
    with pytest.raises(error, match=message):
        early_stopping("loss", **options)
