"""Kinds of units: extreme fields, quantiles, checks of data, initial parameters, imputation, and training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import erfcx, log_ndtr

import paysage_jax as pj
from paysage_jax import rbm
from paysage_jax.rbm.truncated import log_integral, quantile
from tests.helpers import units
from tests.helpers.units import FINITE, KINDS, STATES

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
DATA = {
    "binary": (rng.random((60, 4)) < 0.3).astype(np.float32),
    "spin": rng.choice([-1.0, 1.0], p=[0.3, 0.7], size=(60, 4)).astype(np.float32),
    "categorical": rng.choice(STATES, p=[0.5, 0.2, 0.3], size=(60, 4)),
    "gaussian": rng.normal([1, -2, 0, 300], [0.5, 3, 1, 20], size=(60, 4)).astype(np.float32),
    "relu": rng.gamma(2, size=(60, 4)).astype(np.float32),
    "drelu": rng.normal([1, -2, 0, 300], [0.5, 3, 1, 20], size=(60, 4)).astype(np.float32),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


# --- the truncated normal distribution ---------------------------------------------------------------

Z = np.concatenate([-np.logspace(-3, 4, 60), [0], np.logspace(-3, 3, 60)])


def expected_log_integral(z):
    below = np.log(np.sqrt(np.pi / 2) * erfcx(np.maximum(-z, 0) / np.sqrt(2)))
    return np.where(z < 0, below, z**2 / 2 + np.log(2 * np.pi) / 2 + log_ndtr(z))


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_the_integral_and_the_mean_of_a_truncated_normal_are_accurate_at_any_field(wide):
    """Far below 0 the mean is 1/|z| - 2/|z|³ + 10/|z|⁵, a small difference of large numbers in z + 1 / integral."""
    with jax.enable_x64(wide):
        z = jnp.asarray(Z, float)
        log_integrals, mean = log_integral(z), jax.grad(lambda z: jnp.sum(log_integral(z)))(z)
    tolerance = 1e-11 if wide else 3e-6
    z = np.float64(np.asarray(z))
    np.testing.assert_allclose(log_integrals, expected_log_integral(z), rtol=tolerance, atol=tolerance)
    far, near = z[z < -300], z[z > -5]
    np.testing.assert_allclose(mean[z < -300], -1 / far + 2 / far**3 - 10 / far**5, rtol=tolerance)
    np.testing.assert_allclose(mean[z > -5], near + np.exp(-expected_log_integral(near)), rtol=tolerance)


def test_quantiles_of_a_truncated_normal_are_those_of_its_distribution_function():
    u = np.float32([0, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 2**-20])
    z = np.float32(Z[Z < 100])
    y = np.float64(jax.jit(quantile)(*(jnp.asarray(x) for x in np.broadcast_arrays(z[:, None], u[None]))))
    z = np.float64(z)[:, None]
    log_survival = expected_log_integral(z - y) - expected_log_integral(z) + z * y - y**2 / 2
    remaining = np.broadcast_to(1 - np.float64(u) - 2**-24, y.shape)
    assert (y >= 0).all()
    np.testing.assert_allclose(np.exp(log_survival), remaining, atol=2e-5)
    tails = z[:, 0] < 20  # where the reference itself has digits left
    np.testing.assert_allclose(np.exp(log_survival)[tails], remaining[tails], rtol=1e-4, atol=1e-9)


@each_kind
@pytest.mark.parametrize("field", [-1e4, 1e4])
def test_extreme_fields_give_finite_numbers_and_values_that_the_unit_takes(kind, field):
    unit, n = KINDS[kind], 50
    params = unit.zeros(n)
    fields = jnp.full_like(params["loc"], field)
    draws = unit.draw(params, fields, unit.noise(KEY, (n,), jnp.float32))
    for x in (unit.log_normalizer(params, fields), unit.mean(params, fields), draws):
        assert np.isfinite(x).all()
    if kind in FINITE:
        assert set(np.asarray(draws)) <= set(FINITE[kind])
    elif kind != "relu":
        np.testing.assert_allclose(draws, field, atol=6)
    else:
        assert (draws >= 0).all()
        np.testing.assert_allclose(np.mean(draws), field if field > 0 else -1 / field, rtol=0.5)


# --- data and starts ---------------------------------------------------------------------------------


@each_kind
def test_independent_units_start_as_the_data(kind):
    """With their means, and for real numbers also their variances."""
    unit, data = KINDS[kind], np.abs(DATA[kind]) if kind == "relu" else DATA[kind]
    weights = np.random.default_rng(1).random(len(data)).astype(np.float32)
    params = unit.start("start", unit.rows("data", pj.Weighted(data, weights)))
    x = np.eye(STATES)[data] if kind == "categorical" else np.float64(data)
    expected = np.average(x, axis=0, weights=weights)
    mean = unit.mean(params, jnp.zeros_like(params["loc"]))
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)
    if kind not in FINITE:
        variance = np.average((x - expected) ** 2, axis=0, weights=weights)
        draws = jax.jit(jax.vmap(partial(unit.draw, params, jnp.zeros(4))))(unit.noise(KEY, (20_000, 4), jnp.float32))
        np.testing.assert_allclose(np.var(draws, axis=0), variance, rtol=0.06)


@pytest.mark.parametrize("kind", ["gaussian", "relu", "drelu"])
def test_the_start_is_the_same_machine_in_other_units_of_measurement(kind):
    machine = rbm.RBM(KINDS[kind], rbm.Binary())
    plain, scaled = (machine.init(a * DATA[kind], 3, KEY) for a in (1.0, 1000.0))
    means = [machine.hidden_mean(p, a * DATA[kind]) for p, a in ((plain, 1.0), (scaled, 1000.0))]
    np.testing.assert_allclose(*means, rtol=1e-3)
    energies = [machine.energy(p, a * DATA[kind]) for p, a in ((plain, 1.0), (scaled, 1000.0))]
    np.testing.assert_allclose(*(np.float64(e) - np.float64(e[0]) for e in energies), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("binary", 2, r"expected numbers in \[0, 1\], got 2.* in row 3, column 2; scale"),
        ("spin", 0, r"expected spins, -1 or 1, got 0.* in row 3, column 2; compare values"),
        ("spin", np.nan, "got nan in row 3, column 2; fill in missing"),
        ("categorical", STATES, "expected integers from 0 to 2, got 3 in row 3, column 2"),
        ("categorical", -1, "expected integers from 0 to 2, got -1 in row 3, column 2"),
        ("gaussian", np.inf, "got inf in row 3, column 2; fill in missing"),
        ("relu", -0.5, "expected nonnegative numbers, got -0.5 in row 3, column 2; use Gaussian"),
        ("drelu", np.nan, "got nan in row 3, column 2; fill in missing"),
    ],
)
def test_units_refuse_values_that_they_do_not_take_and_name_row_and_column(kind, value, message):
    machine, data = rbm.RBM(KINDS[kind]), np.array(DATA[kind])
    params = machine.init(data, 2, KEY)
    data[3, 2] = value
    for call in (
        lambda: machine.init(data, 2, KEY),
        lambda: machine.annealing(params, data, 5, KEY),
        lambda: machine.log_likelihood(params, data, 0.0),
        lambda: machine.impute(params, data, np.zeros(data.shape, bool), KEY),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_units_say_what_to_do_about_data_of_another_kind():
    with pytest.raises(ValueError, match="convert zeros and ones with 2 v - 1"):
        rbm.RBM(rbm.Spin()).init(DATA["binary"], 2, KEY)
    with pytest.raises(ValueError, match="count the states from 0 with v - 1"):
        rbm.RBM(rbm.Categorical(3)).init(DATA["categorical"] + 1, 2, KEY)
    with pytest.raises(ValueError, match=r"or one-hot states \(rows, visible, 3\), got shapes \[\(5, 4, 7\)\]"):
        rbm.RBM(rbm.Categorical(3)).init(np.zeros((5, 4, 7)), 2, KEY)
    with pytest.raises(ValueError, match=r"expected one-hot states, got .* in row 0"):
        rbm.RBM(rbm.Categorical(3)).init(np.ones((5, 4, 3)), 2, KEY)


# --- categories --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_integers_and_one_hot_vectors_are_the_same_states(dtype):
    machine, v = rbm.RBM(rbm.Categorical(STATES), rbm.Spin()), DATA["categorical"].astype(dtype)
    one_hot = np.eye(STATES, dtype=dtype)[DATA["categorical"]]
    params = machine.init(v, 3, KEY)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), machine.init(one_hot, 3, KEY), params)
    np.testing.assert_allclose(machine.energy(params, one_hot), machine.energy(params, v), rtol=1e-6)
    moved, moved_one_hot = (machine.transition(params, x, KEY) for x in (v, one_hot))
    assert moved.dtype == moved_one_hot.dtype == dtype
    np.testing.assert_array_equal(np.eye(STATES)[np.asarray(moved, int)], moved_one_hot)


@pytest.mark.parametrize(
    "kinds", [("categorical", "binary"), ("gaussian", "categorical"), ("categorical", "categorical")]
)
def test_the_zero_sum_gauge_changes_no_probability_and_is_reached_at_once(kinds):
    machine = rbm.RBM(*(KINDS[kind] for kind in kinds))
    params = units.cast(units.random_params(*kinds, (4, 3), coupling=0.5))
    gauged = jax.jit(machine.zero_sum)(params)
    v = jnp.asarray(units.random_states(kinds[0], 1000, 4), None if kinds[0] == "categorical" else jnp.float32)
    plain, changed = (-machine.energy(p, v) - machine.log_partition(p) for p in (params, gauged))
    np.testing.assert_allclose(changed, plain, atol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), machine.zero_sum(gauged), gauged)
    for axis, (kind, layer) in enumerate(zip(kinds, gauged["layers"], strict=True)):
        if kind == "categorical":
            np.testing.assert_allclose(layer["loc"].sum(axis=1), 0, atol=1e-6)
            states = 1 if axis == 0 else -1
            np.testing.assert_allclose(gauged["weights"][0]["matrix"].sum(axis=states), 0, atol=1e-6)
    assert np.square(gauged["weights"][0]["matrix"]).sum() < np.square(params["weights"][0]["matrix"]).sum()


def test_annealing_starts_from_equally_likely_values_and_real_numbers_have_their_own_parameters_all_the_way():
    machine = rbm.RBM(rbm.Categorical(STATES), rbm.ReLU())
    params = units.cast(units.random_params("categorical", "relu", (4, 3)))
    start = machine.annealing(params, None, 3000, KEY)
    visible, hidden = start.path(0.0)["layers"]
    assert not visible["loc"].any()
    jax.tree.map(np.testing.assert_array_equal, hidden, params["layers"][1])
    counts = np.bincount(np.asarray(start.start).ravel(), minlength=STATES)
    assert stats.chisquare(counts).pvalue > 1e-3


# --- missing units -----------------------------------------------------------------------------------


def test_imputed_units_have_the_conditional_distribution_and_observed_ones_stay():
    kinds = "categorical", "spin"
    machine = rbm.RBM(*(KINDS[kind] for kind in kinds))
    params = units.random_params(*kinds, (3, 2), coupling=0.8)
    rows, missing = np.array([[0, x, y] for x in range(3) for y in range(3)]), np.array([False, True, True])
    energies = units.free_energy(params, kinds, 0, rows)
    expected = np.exp(-energies) / np.exp(-energies).sum()
    v = jnp.tile(jnp.asarray([[0, -7, 99]]), (20_000, 1))  # what is missing is not looked at
    drawn = machine.impute(units.cast(params), v, jnp.broadcast_to(missing, v.shape), KEY, steps=30)
    assert drawn.dtype == v.dtype
    np.testing.assert_array_equal(drawn[:, 0], 0)
    counts = np.bincount(np.asarray(3 * drawn[:, 1] + drawn[:, 2]), minlength=9)
    assert stats.chisquare(counts, expected * 20_000).pvalue > 1e-3


def test_missing_units_may_be_nan_and_a_mask_of_another_shape_is_refused():
    machine, v = rbm.RBM(rbm.Gaussian()), jnp.asarray(DATA["gaussian"])
    params = machine.init(v, 2, KEY)
    holes = v.at[3, 2].set(jnp.nan)
    filled = machine.impute(params, holes, jnp.isnan(holes), KEY, steps=3)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(np.delete(filled, 3, axis=0), np.delete(v, 3, axis=0))
    with pytest.raises(ValueError, match=r"missing: expected bools of shape \(60, 4\), got shape \(4,\)"):
        machine.impute(params, v, jnp.zeros(4, bool), KEY)


# --- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spin", "categorical", "drelu"])
@pytest.mark.slow_unless("categorical")
def test_training_with_persistent_chains_makes_weighted_data_more_likely(kind):
    """Three columns that depend on one. The likelihood is exact."""
    rng, first = np.random.default_rng(2), DATA[kind][:, :1]
    if kind in FINITE:
        rows = np.where(rng.random((60, 3)) < 0.7, first, rng.permuted(np.repeat(first, 3, axis=1), axis=0))
    else:
        rows = first * rng.uniform(0.5, 1.5, size=(60, 3)).astype(np.float32)
    data = pj.Weighted(rows, rng.random(60).astype(np.float32))
    machine = rbm.RBM(KINDS[kind], rbm.Spin())
    params = machine.init(data, 4, KEY)
    pcd = pj.persistent_contrastive_divergence(machine, num_chains=100)
    result = pj.fit(params, pj.adam(0.01), pcd, data, epochs=30, batch_size=10, key=KEY)
    before, after = (machine.log_likelihood(p, data, machine.log_partition(p)) for p in (params, result.params))
    assert after > before + 0.05
    assert result.params["weights"][0]["matrix"].shape == params["weights"][0]["matrix"].shape


@pytest.mark.parametrize("kind", ["spin", "categorical", "drelu"])
@pytest.mark.slow_unless("categorical")
def test_half_precision_is_computed_in_float32(kind):
    """Energies in bfloat16 equal those of the rounded numbers; draws and means have the dtype of the states."""
    machine = rbm.RBM(KINDS[kind], rbm.ReLU())
    half = units.cast(units.random_params(kind, "relu", (4, 3)), jnp.bfloat16)
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), half)
    v = jnp.asarray(DATA[kind][:, :4] / (100 if kind in ("gaussian", "drelu") else 1), jnp.bfloat16)
    v = v.astype(jnp.int32) if kind == "categorical" else v
    wide = v if kind == "categorical" else v.astype(jnp.float32)
    energies = machine.energy(half, v)
    assert energies.dtype == jnp.float32
    np.testing.assert_array_equal(energies, machine.energy(rounded, wide))
    moved = machine.transition(half, v, KEY)
    assert moved.dtype == v.dtype
    np.testing.assert_allclose(moved.astype(jnp.float32), machine.transition(rounded, wide, KEY), rtol=2**-8)


# --- centring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "hidden"), [("gaussian", "binary"), ("categorical", "gaussian"), ("drelu", "spin")]
)
def test_activations_are_the_means_of_the_statistics(visible, hidden):
    """The means of t(v) over rows, and of t(h) over rows and hidden units, in place of the biases."""
    kinds, machine = (visible, hidden), rbm.RBM(KINDS[visible], KINDS[hidden])
    params, v = units.random_params(*kinds, (3, 2)), units.random_states(visible, 6, 3)
    states = jnp.asarray(v, None if visible == "categorical" else float)
    gradient = jax.grad(lambda p: jnp.mean(machine.energy(p, states)))(units.cast(params))
    actual = machine.activations(units.cast(params), gradient)["layers"]
    t = [units.statistic(visible, params["layers"][0], i, v[:, i]).mean(axis=0) for i in range(3)]
    np.testing.assert_allclose(actual[0]["loc"], t, rtol=1e-4, atol=1e-5)
    of_rows = [list(units.conditionals(params, kinds, 0, row)) for row in v]
    t = [
        np.mean(
            [p @ units.statistic(hidden, params["layers"][1], j, values) for values, p in (row[j] for row in of_rows)]
        )
        for j in range(2)
    ]
    np.testing.assert_allclose(actual[1]["loc"], t, rtol=1e-4, atol=1e-5)


def test_the_centred_gradient_of_a_gaussian_machine_does_not_depend_on_where_its_data_lie():
    """Shifted with the machine: the changes of W and of the hidden field remain (Melchior et al., 2016)."""
    machine, shift = rbm.RBM(rbm.Gaussian()), 5.0
    data = DATA["gaussian"][:, :3]
    params = jax.tree.map(lambda p: p + 0.1, machine.init(data, 2, KEY))
    (visible, hidden), matrix = params["layers"], params["weights"][0]["matrix"]
    field = jnp.tensordot(shift / jnp.exp(visible["log_var"]), matrix, 1)
    shifted = {
        "layers": [visible | {"loc": visible["loc"] + shift}, {"loc": hidden["loc"] - field}],
        "weights": [{"matrix": matrix}],
    }
    optimizer = pj.center(0.0, activations=machine.activations)

    @jax.jit
    def centred(params, data, samples):
        model = pj.Model(machine.energy, lambda params, v, key: samples)
        gradient, _, statistics = pj.contrastive_divergence(model).estimate(params, data, (), KEY)
        return optimizer.update(gradient, optimizer.init(params), params, statistics=statistics)[0]

    samples = data[::-1] * 0.9 + 0.3
    plain, moved = centred(params, data, samples), centred(shifted, data + shift, samples + shift)
    plain, moved = ([u["weights"][0]["matrix"], u["layers"][1]["loc"]] for u in (plain, moved))
    np.testing.assert_allclose(moved[0], plain[0], rtol=1e-3, atol=1e-4)
    expected = plain[1] - jnp.tensordot(shift / jnp.exp(visible["log_var"]), plain[0], 1)
    np.testing.assert_allclose(moved[1], expected, rtol=1e-3, atol=1e-4)


# --- pseudo-likelihood -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spin", "categorical"])
def test_the_pseudo_likelihood_is_a_mean_over_units_of_their_conditional_probabilities(kind):
    machine, n = rbm.RBM(KINDS[kind]), 2
    params = units.random_params(kind, "binary", (n, 3))
    v = units.random_states(kind, 3, n)
    many = np.repeat(v, 20_000, axis=0)
    metric = pj.pseudo_log_likelihood(machine, many if kind == "categorical" else np.float32(many))
    expected = 0.0
    for i in range(n):
        others = np.repeat(v[None], len(FINITE[kind]), axis=0)
        others[:, :, i] = np.array(FINITE[kind])[:, None]
        minus = -np.stack([units.free_energy(params, (kind, "binary"), 0, x) for x in others])
        expected += -units.free_energy(params, (kind, "binary"), 0, v) - np.logaddexp.reduce(minus, axis=0)
    actual = jax.jit(lambda p: metric(pj.TrainState(p, (), ()), KEY))(units.cast(params))
    np.testing.assert_allclose(actual, expected.mean(), rtol=0.01)


def test_pseudo_likelihood_refuses_real_numbers_and_values_of_another_kind():
    with pytest.raises(ValueError, match="expected discrete visible units, got RBM"):
        pj.pseudo_log_likelihood(rbm.RBM(rbm.Gaussian()), DATA["gaussian"])
    with pytest.raises(ValueError, match=r"expected values \[-1.0, 1.0\], got 0.0 in row 0, column"):
        pj.pseudo_log_likelihood(rbm.RBM(rbm.Spin()), DATA["binary"])
