"""Users' data: domains of units, weights, half precision, and changes of units of measurement or order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import paysage_jax as pj
from paysage_jax import rbm

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
BITS = (rng.random((40, 6)) < [0.1, 0.3, 0.5, 0.5, 0.8, 0.6]).astype(np.float32)
REAL = rng.normal([1, -2, 0], [0.5, 3, 1], size=(200, 3)).astype(np.float32)
few = settings(max_examples=15)  # one program serves all
MODEL, REAL_MODEL = rbm.RBM(), rbm.RBM(visible=rbm.Gaussian())

init_bernoulli = jax.jit(partial(MODEL.init, num_hidden=4, key=KEY))
init_gaussian = jax.jit(partial(REAL_MODEL.init, num_hidden=4, key=KEY))
hidden_mean = jax.jit(REAL_MODEL.hidden_mean)
log_likelihood = jax.jit(lambda params, v: REAL_MODEL.log_likelihood(params, v, REAL_MODEL.log_partition(params)))
MACHINE = jax.tree.map(
    lambda p: p + np.float32(np.random.default_rng(p.size).normal(size=p.shape)), MODEL.init(BITS, 4, KEY)
)


def close(actual, expected, rtol=1e-5, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


def measured(metric, params):
    return metric(pj.TrainState(params, (), ()), KEY)


def moved(params, key=KEY):
    """A machine whose weights are not small."""
    return params | {"weights": [{"matrix": 50 * params["weights"][0]["matrix"]}]}


# --- units of measurement ----------------------------------------------------------------------------


@few
@given(st.floats(-12, 12), st.floats(-3, 3))
def test_in_other_units_the_gaussian_start_has_the_log_likelihood_less_the_log_of_the_units(power, shift):
    """log p(a v + t) = log p(v) - n log a; float32 keeps v to 1e-7 of its distance from 0."""
    a = 10.0**power
    other = (a * (REAL + shift)).astype(np.float32)
    expected = log_likelihood(init_gaussian(REAL), REAL) - 3 * np.log(a)
    params = init_gaussian(other)
    np.testing.assert_allclose(log_likelihood(params, other), expected, rtol=1e-5, atol=2e-3)
    seen = hidden_mean(params, other)  # the machine is the same: hidden units see the distance from the mean
    np.testing.assert_allclose(seen, hidden_mean(init_gaussian(REAL), REAL), atol=1e-4)


@pytest.mark.parametrize(("unit", "zero"), [(1e-3, 0.0), (1.0, 293.0), (1e4, -5e6)])
def test_the_gaussian_start_is_the_independent_gaussian(unit, zero):
    data = (zero + unit * REAL).astype(np.float32)
    exact = np.float64(data)
    expected = stats.norm.logpdf(exact, exact.mean(0), exact.std(0)).sum(axis=1).mean()
    assert abs(log_likelihood(init_gaussian(data), data) - expected) < 0.02


@pytest.mark.parametrize("value", [14.62, 100.0, 0.0, -3e7, 0.1])
def test_a_constant_column_is_named_whatever_its_value(value):
    data = np.stack([REAL[:, 0], np.full(len(REAL), value, np.float32)], axis=1)
    nearly = data.copy()
    nearly[::2, 1] = np.nextafter(nearly[::2, 1], np.float32(np.inf))
    for rows in (data, nearly, pj.Weighted(data, rng.random(len(REAL)))) if value else (data,):
        for make in (partial(REAL_MODEL.init, num_hidden=2, key=KEY), rbm.standardize):
            with pytest.raises(ValueError, match=r"data\[:, 1\] is constant up to rounding"):
                make(rows)


def test_a_column_that_varies_little_is_not_constant():
    """Float32 keeps six digits of 14.62: a standard deviation of 1e-4 is accurate to one percent."""
    data = (14.62 + 1e-4 * REAL).astype(np.float32)
    deviation = np.exp(np.asarray(init_gaussian(data)["layers"][0]["log_var"]) / 2)
    np.testing.assert_allclose(deviation, np.float64(data).std(axis=0), rtol=1e-3)


def test_a_variance_that_float32_does_not_hold_is_named():
    for scale in (1e-25, 1e25):
        with pytest.raises(ValueError, match=r"data\[:, 0\] has no variance in float32; rescale it"):
            REAL_MODEL.init(np.float32(scale) * REAL, 2, KEY)


@few
@given(st.floats(-6, 6), st.floats(-100, 100))
def test_standardized_data_are_the_same_in_all_units_and_the_inverse_gives_them_back(power, shift):
    a = 10.0**power
    data = (a * (REAL + shift)).astype(np.float32)
    units = rbm.standardize(data)
    expected = (np.float64(REAL) - np.float64(REAL).mean(axis=0)) / np.float64(REAL).std(axis=0)
    np.testing.assert_allclose(units.apply(data), expected, atol=1e-6 * (10 + 10 * abs(shift)))
    np.testing.assert_allclose(units.inverse(units.apply(data)), data, rtol=1e-5, atol=1e-5 * a)


def test_the_log_likelihood_of_standardized_rows_is_that_of_the_rows_plus_the_log_of_the_units():
    data = (100 + 5 * REAL).astype(np.float32)
    units = rbm.standardize(data)
    white = units.apply(data)
    expected = log_likelihood(init_gaussian(white), white) - np.log(units.deviation).sum()
    np.testing.assert_allclose(log_likelihood(init_gaussian(data), data), expected, atol=5e-3)


# --- domains -----------------------------------------------------------------------------------------


def with_(value, data=BITS):
    data = np.array(data)
    data[3, 2] = value
    return data


GAUSSIAN = REAL_MODEL.init(REAL, 2, KEY)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_numbers_are_rejected_with_row_and_column(value):
    annealing = MODEL.annealing(MACHINE, BITS, 5, KEY)
    states = with_(value, annealing.start)
    bits, real = with_(value), with_(value, REAL)
    for call in (
        lambda: MODEL.init(bits, 2, KEY),
        lambda: REAL_MODEL.init(real, 2, KEY),
        lambda: rbm.standardize(real),
        lambda: MODEL.annealing(MACHINE, bits, 5, KEY),
        lambda: REAL_MODEL.annealing(GAUSSIAN, real, 5, KEY),
        lambda: MODEL.log_likelihood(MACHINE, bits, 0.0),
        lambda: REAL_MODEL.log_likelihood(GAUSSIAN, real, 0.0),
        lambda: pj.pseudo_log_likelihood(MODEL, bits),
        lambda: pj.reconstruction_error(MODEL, real),
        lambda: pj.free_energy_gap(MODEL, BITS, bits),
        lambda: pj.free_energy_gap(MODEL, pj.Weighted(bits, np.ones(40)), BITS),
        lambda: pj.tracked_log_likelihood(MODEL, real),
        lambda: pj.annealed_importance_sampling(MODEL, annealing._replace(start=states), KEY),
        lambda: pj.reverse_annealed_importance_sampling(MODEL, annealing, states, KEY),
        lambda: pj.reverse_ais_log_prob(MODEL, annealing, bits, KEY),
        lambda: pj.track_log_partition(MODEL, pj.AnnealedEstimate(0.0, bits), KEY),
    ):
        with pytest.raises(ValueError, match=rf"got {value} in row 3, column 2; fill in missing values"):
            call()


@pytest.mark.parametrize(
    ("data", "first", "advice"),
    [
        (16 * BITS + np.eye(40, 6), "17.0 in row 0, column 0|16.0 in row", r"scale the values to \[0, 1\]"),
        ((255 * BITS).astype(np.uint8), "255 in row", "v > 127.5"),
        (2 * BITS.astype(int) - 1, "-1 in row", r"convert spins to zeros and ones with \(v \+ 1\) / 2"),
        (with_(-0.25), "-0.25 in row 3, column 2", "use Gaussian units for real numbers"),
        (with_(1.5), "1.5 in row 3, column 2", r"scale the values to \[0, 1\]"),
    ],
    ids=["digits", "bytes", "spins", "negative", "above"],
)
def test_binary_units_reject_other_values_and_say_what_to_do(data, first, advice):
    for call in (
        partial(MODEL.init, data, 2, KEY),
        partial(MODEL.init, pj.Weighted(jnp.asarray(data), np.ones(40)), 2, KEY),
        partial(MODEL.annealing, MACHINE, data, 5, KEY),
        partial(MODEL.log_likelihood, MACHINE, data, 0.0),
        partial(pj.pseudo_log_likelihood, MODEL, data),
    ):
        with pytest.raises(ValueError, match=rf"got ({first}).*{advice}"):
            call()


def test_grey_values_pass_where_means_are_wanted_and_not_where_units_are_flipped():
    grey = with_(0.25)
    MODEL.init(grey, 2, KEY)
    MODEL.annealing(MACHINE, grey, 5, KEY)
    with pytest.raises(ValueError, match=r"expected zeros and ones, got 0.25 in row 3, column 2; compare grey values"):
        pj.pseudo_log_likelihood(MODEL, grey)


def test_the_log_likelihood_of_grey_values_is_below_its_mean_over_draws():
    grey = np.full((1, 6), 0.5, np.float32)
    states = np.array(list(np.ndindex(*[2] * 6)), np.float32)
    assert MODEL.log_likelihood(MACHINE, grey, 0.0) < MODEL.log_likelihood(MACHINE, states, 0.0)


def test_states_that_are_not_binary_have_no_pseudo_likelihood():
    for states, message in (
        (REAL, "expected zeros and ones, got"),
        (np.arange(200).reshape(40, 5) % 4, "got 2 in row 0, column 2"),
        (np.eye(4, dtype=np.float32)[np.zeros((5, 3), int)], r"one array of binary states \(rows, n\).*\(5, 3, 4\)"),
        ({"a": BITS}, "one array of binary states"),
    ):
        with pytest.raises(ValueError, match=message):
            pj.pseudo_log_likelihood(MODEL, states)


def test_data_of_another_shape_are_named():
    for data, message in (
        (np.zeros((3, 4, 4)), r"shapes \[\(3, 4, 4\)\]; flatten each row: data.reshape\(len\(data\), -1\)"),
        ((BITS, np.ones(40)), r"expected one array \(rows, visible\), got shapes \[\(40, 6\), \(40,\)\]"),
        (np.zeros((0, 4)), "init: data: expected states, got 0 rows"),
        (pj.Weighted(BITS, np.ones(3)), r"data.weights: expected shape \(40,\)"),
        (pj.Weighted(BITS, np.zeros(40)), "data.weights: expected some positive weight, all are 0"),
        (pj.Weighted(BITS, -np.ones(40)), "data.weights: expected nonnegative numbers, got -1.0 in row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MODEL.init(data, 2, KEY)


def test_data_on_an_accelerator_are_checked_there_and_known_within_a_program(monkeypatch):
    for module in ("_core.batches", "_ebm.domain"):
        monkeypatch.setattr(f"paysage_jax.{module}.is_remote", lambda x: isinstance(x, jax.Array))
    for model, params, good, bad in (
        (MODEL, MACHINE, BITS, with_(2)),
        (REAL_MODEL, GAUSSIAN, REAL, with_(np.inf, REAL)),
    ):
        good, bad = jnp.asarray(good), jnp.asarray(bad)
        jax.jit(lambda p, v=good, model=model: model.log_likelihood(p, v, 0.0))(params)
        with pytest.raises(ValueError, match="in row 3, column 2"):
            jax.jit(lambda p, v=bad, model=model: model.log_likelihood(p, v, 0.0))(params)


def test_traced_data_pass():
    close(jax.jit(lambda v: MODEL.init(v, 4, KEY))(2 * BITS)["layers"][1], {"loc": np.zeros(4)})
    inside = jax.jit(lambda params: MODEL.log_likelihood(params, BITS, 0.0))(MACHINE)  # known within a program
    np.testing.assert_allclose(inside, MODEL.log_likelihood(MACHINE, BITS, 0.0), rtol=1e-6)


# --- what a change of the data must do ---------------------------------------------------------------


def gradient(params, data, samples):
    """The gradient of the mean free energy of the data, weighted or not, minus that of the samples."""
    return jax.grad(lambda p: -MODEL.log_likelihood(p, data, 0.0) - jnp.mean(MODEL.energy(p, samples)))(params)


def copy(params, v, key):
    """The squared error depends on the parameters and on each row, and is deterministic."""
    return MODEL.visible_mean(params, MODEL.hidden_mean(params, v))


@jax.jit
def measures(params, data, validation):
    """The deterministic functions of the data, by name."""
    track = pj.track_log_partition(MODEL, pj.AnnealedEstimate(3.0, jnp.zeros((5, 6))), KEY)
    state = pj.TrainState(params, track.init(params), ())
    annealing = MODEL.annealing(params, data, 1, KEY)
    return {
        "start": MODEL.init(data, 4, KEY)["layers"][0],
        "gradient": gradient(params, data, jnp.zeros((5, 6))),
        "likelihood": MODEL.log_likelihood(params, data, 3.0),
        "error": pj.reconstruction_error(pj.Model(MODEL.energy, copy), data)(state, KEY),
        "gap": pj.free_energy_gap(MODEL, data, validation)(state, KEY),
        "tracked": pj.tracked_log_likelihood(MODEL, data, discrete=False)(state, KEY),
        "annealing": (annealing.path(0.0)["layers"][0], annealing.log_z_start),
    }


@few
@given(st.lists(st.integers(0, 3), min_size=40, max_size=40).filter(any), st.sampled_from([1.0, 1e-30, 1e37]))
def test_a_row_of_weight_two_is_the_row_twice_and_a_factor_of_all_weights_changes_nothing(weights, factor):
    """So a row of weight 0 counts as absent. The formulas of the metrics are written in NumPy."""
    repeated = np.repeat(BITS, weights, axis=0)
    padded = np.concatenate([repeated, np.zeros((120 - len(repeated), 6), np.float32)])
    given = np.arange(120) < len(repeated)
    actual = measures(MACHINE, pj.Weighted(BITS, factor * np.float32(weights)), BITS)
    expected = measures(MACHINE, pj.Weighted(padded, given.astype(np.float32)), BITS)
    close(actual, expected, rtol=2e-5, atol=2e-5)
    matrix = np.float64(MACHINE["weights"][0]["matrix"])
    b, c = (np.float64(layer["loc"]) for layer in MACHINE["layers"])
    minus_energies = repeated @ b + np.logaddexp(0, c + repeated @ matrix).sum(axis=1)
    np.testing.assert_allclose(actual["likelihood"], minus_energies.mean() - 3, rtol=1e-5)
    means = np.clip(repeated.mean(axis=0, dtype=np.float64), 2.0**-23, 1 - 2.0**-23)
    np.testing.assert_allclose(actual["start"]["loc"], np.log(means / (1 - means)), rtol=1e-4, atol=1e-5)


def test_rows_without_weights_are_rows_of_equal_weight_and_their_order_is_nothing():
    plain = measures(MACHINE, BITS, BITS)
    close(measures(MACHINE, pj.Weighted(BITS, None), BITS), plain)
    close(measures(MACHINE, pj.Weighted(BITS, np.full(40, 7)), BITS), plain)
    order = np.random.default_rng(1).permutation(40)
    close(measures(MACHINE, BITS[order], BITS), plain)
    close(
        measures(MACHINE, pj.Weighted(BITS[order], order), BITS),
        measures(MACHINE, pj.Weighted(BITS, np.arange(40)), BITS),
    )


def test_the_order_of_the_columns_is_nothing():
    order = np.random.default_rng(2).permutation(6)
    visible, hidden = MACHINE["layers"]
    other = {
        "layers": [{"loc": visible["loc"][order]}, hidden],
        "weights": [{"matrix": MACHINE["weights"][0]["matrix"][order]}],
    }
    plain, permuted = measures(MACHINE, BITS, BITS), measures(other, BITS[:, order], BITS[:, order])
    for name in ("likelihood", "error", "gap", "tracked"):
        close(permuted[name], plain[name])
    close(permuted["start"]["loc"], plain["start"]["loc"][order])
    close(permuted["gradient"]["weights"][0]["matrix"], plain["gradient"]["weights"][0]["matrix"][order])


def test_complementing_bits_complements_the_machine():
    """v to 1 - v: E has -b for b, -W for W and Wᵀ1 + c for c, up to the constant Σ b."""
    (visible, hidden), matrix = MACHINE["layers"], MACHINE["weights"][0]["matrix"]
    other = {
        "layers": [{"loc": -visible["loc"]}, {"loc": hidden["loc"] + matrix.sum(axis=0)}],
        "weights": [{"matrix": -matrix}],
    }
    plain, complement = measures(MACHINE, BITS, BITS), measures(other, 1 - BITS, 1 - BITS)
    close(complement["start"]["loc"], -plain["start"]["loc"], rtol=1e-4)
    for name in ("error", "gap"):
        close(complement[name], plain[name], atol=1e-5)
    close(complement["likelihood"], plain["likelihood"] - visible["loc"].sum())
    pseudo = [measured(pj.pseudo_log_likelihood(MODEL, v), p) for p, v in ((MACHINE, BITS), (other, 1 - BITS))]
    close(*pseudo)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float64, jnp.bfloat16, np.float16])
def test_zeros_and_ones_of_any_dtype_are_the_same_data(dtype):
    data = BITS.astype(dtype)
    plain, other = measures(MACHINE, BITS, BITS), measures(MACHINE, data, data)
    half = dtype in (jnp.bfloat16, np.float16)
    for name in plain:
        close(other[name], plain[name], *((1e-2, 1e-2) if half and name in ("start", "error") else (1e-5, 1e-5)))
    pseudo = [measured(pj.pseudo_log_likelihood(MODEL, v), MACHINE) for v in (BITS, data)]
    close(*pseudo)


def test_the_guard_of_the_tracked_likelihood_takes_zeros_and_ones_of_any_dtype():
    expected = pj.tracked_log_likelihood(MODEL, BITS).guard(MACHINE, KEY)
    assert np.isfinite(expected)
    for dtype in (bool, np.uint8):
        close(pj.tracked_log_likelihood(MODEL, BITS.astype(dtype)).guard(MACHINE, KEY), expected)


def test_an_energy_of_ones_own_does_not_compute_in_unsigned_integers():
    def energy(params, v):
        return -v @ params["b"]

    params, data = {"b": jnp.linspace(-1, 1, 6)}, BITS.astype(np.uint8)
    ones = pj.Model(energy, lambda p, v, key: 0 * v + 1)
    gaps = [measured(pj.free_energy_gap(ones, v, v[:7]), params) for v in (BITS, data, BITS > 0)]
    close(gaps[1:], [gaps[0]] * 2)
    errors = [measured(pj.reconstruction_error(ones, v), params) for v in (BITS, data)]
    close(errors[1], np.mean(1 - BITS))
    as_they_are = pj.Model(energy, lambda p, v, key: v + np.uint8(200), integer_states=True)
    close(measured(pj.reconstruction_error(as_they_are, data), params), 200.0**2)


def test_pseudo_likelihood_of_weighted_rows_is_the_weighted_mean():
    weights = np.arange(40)

    def of(v):
        return measured(pj.pseudo_log_likelihood(MODEL, v), MACHINE)

    of_rows = np.array([of(pj.Weighted(BITS, np.eye(40)[i])) for i in (0, 5, 39)])
    three = np.zeros(40)
    three[[0, 5, 39]] = 1, 2, 3
    close(of(pj.Weighted(BITS, three)), of_rows @ [1, 2, 3] / 6)
    close(of(pj.Weighted(BITS, np.full(40, 3))), of(BITS))
    assert abs(of(pj.Weighted(BITS, weights)) - of(BITS)) > 1e-4


@few
@given(st.lists(st.integers(0, 3), min_size=200, max_size=200))
def test_the_gaussian_start_of_weighted_rows_has_their_moments(weights):
    weights[:3] = 1, 1, 1
    repeated = np.repeat(np.float64(REAL), weights, axis=0)
    visible = init_gaussian(pj.Weighted(REAL, np.float32(weights)))["layers"][0]
    np.testing.assert_allclose(visible["loc"], repeated.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(visible["log_var"]), repeated.var(axis=0), rtol=1e-5)


# --- half precision ----------------------------------------------------------------------------------

each_half = pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16], ids=["bfloat16", "float16"])


def dtypes_of(tree):
    return {jnp.result_type(x) for x in jax.tree.leaves(tree)}


@pytest.mark.slow_unless("bfloat16")
@each_half
def test_a_pixel_that_is_always_on_has_finite_log_odds_in_half_precision(dtype):
    data = BITS.copy()
    data[:, 0], data[:, 1] = 1, 0
    params = MODEL.init(data.astype(dtype), 4, KEY)
    assert dtypes_of(params) == {jnp.dtype(dtype)}
    loc = np.asarray(params["layers"][0]["loc"], np.float32)
    np.testing.assert_allclose(loc[:2], [15.942385, -15.942385], rtol=1e-2)
    half, single = (
        MODEL.log_likelihood(p, v, MODEL.log_partition(p))
        for p, v in ((params, data.astype(dtype)), (init_bernoulli(data), data))
    )
    np.testing.assert_allclose(half, single, atol=0.1)


@each_half
def test_rare_states_are_drawn_as_rarely_in_half_precision(dtype):
    rate = 1 / (1 + np.exp(7))  # 0.0009; bfloat16 draws know multiples of 1/128
    params = {
        "layers": [{"loc": jnp.full(5, -7, dtype)}, {"loc": jnp.full(4, 7, dtype)}],
        "weights": [{"matrix": jnp.zeros((5, 4), dtype)}],
    }
    rows = 40_000
    v = jax.jit(MODEL.transition)(params, jnp.zeros((rows, 5), dtype), KEY)
    h = jax.jit(MODEL.hidden_sample)(params, v, KEY)
    assert v.dtype == h.dtype == dtype
    for seen in (np.float32(v).mean(), 1 - np.float32(h).mean()):
        assert abs(seen - rate) < 5 * np.sqrt(rate / (4 * rows))


@pytest.mark.slow_unless("bfloat16")
@each_half
def test_in_half_precision_energies_are_as_exact_as_the_parameters(dtype):
    half = jax.tree.map(lambda p: p.astype(dtype), MACHINE)
    rounded = jax.tree.map(lambda p: p.astype(np.float32), half)
    v = BITS.astype(dtype)
    close(MODEL.energy(half, v), MODEL.energy(rounded, BITS), rtol=1e-6, atol=1e-6)
    close(
        MODEL.hidden_free_energy(half, v[:, :4]), MODEL.hidden_free_energy(rounded, BITS[:, :4]), rtol=1e-6, atol=1e-6
    )
    assert dtypes_of(gradient(half, v, v[:3])) == {jnp.dtype(dtype)}
    assert MODEL.hidden_mean(half, v).dtype == MODEL.visible_mean(half, v[:, :4]).dtype == dtype
    pseudo = [measured(pj.pseudo_log_likelihood(MODEL, x), p) for p, x in ((half, v), (rounded, BITS))]
    close(*pseudo)


def test_a_path_from_parameters_to_themselves_stays_there_in_half_precision():
    params = jnp.linspace(0.5, 3, 50, dtype=jnp.bfloat16)
    on_the_way = jax.vmap(pj.linear_path(params, params))(jnp.linspace(0, 1, 41))
    np.testing.assert_array_equal(on_the_way, np.broadcast_to(params, (41, 50)))


@pytest.mark.slow
def test_annealing_in_half_precision_finds_log_z():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), MACHINE)
    annealing = MODEL.annealing(half, BITS, 500, KEY)
    assert dtypes_of((annealing.start, annealing.path(0.5))) == {jnp.dtype(jnp.bfloat16)}
    estimate = pj.annealed_importance_sampling(MODEL, annealing, KEY, steps=100)
    assert abs(estimate.log_z - MODEL.log_partition(half)) < 4 * estimate.error + 1e-3
    assert estimate.error < 0.1


@pytest.mark.slow_unless("bfloat16")
@each_half
def test_the_gaussian_start_in_half_precision(dtype):
    data = jnp.asarray(REAL, dtype)
    params = REAL_MODEL.init(data, 4, KEY)
    assert dtypes_of(params) == {jnp.dtype(dtype)}
    assert REAL_MODEL.transition(params, data, KEY).dtype == dtype
    exact = np.asarray(data, np.float64)
    expected = stats.norm.logpdf(exact, exact.mean(0), exact.std(0)).sum(axis=1).mean()
    assert abs(log_likelihood(params, data) - expected) < 0.05


# --- training ----------------------------------------------------------------------------------------

WRONG = {
    "bytes": (rbm.Binary(), np.array([[0, 255], [1, 0]], np.uint8), r"numbers in \[0, 1\], got 255 in row 0, column 1"),
    "spins": (rbm.Spin(), np.array([[1.0, -1], [0, 1]]), "spins, -1 or 1, got 0.0 in row 1, column 0"),
    "states": (rbm.Categorical(3), np.array([[0, 2], [3, 1]]), "integers from 0 to 2, got 3 in row 1, column 0"),
    "signs": (rbm.ReLU(), np.array([[0.5, 1], [2, -1]]), "nonnegative numbers, got -1.0 in row 1, column 1"),
    "missing": (rbm.Gaussian(), np.array([[0.5, 1], [np.nan, -1]]), "finite numbers, got nan in row 1, column 0"),
    "images": (rbm.Binary(), np.zeros((2, 1, 2)), r"one array \(rows, visible\), got shapes .*flatten each row"),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("unit", "data", "message"), WRONG.values(), ids=WRONG)
def test_fit_rejects_what_the_units_do_not_take(unit, data, message, weighted):
    """Also from a loader, where the batch is named."""
    machine = rbm.RBM(visible=unit)
    layer = {name: jnp.zeros(p.shape) for name, p in unit.zeros(2).items()}
    params = {"layers": [layer, {"loc": jnp.zeros(3)}], "weights": [{"matrix": jnp.zeros((*layer["loc"].shape, 3))}]}
    fit = partial(pj.fit, params, pj.sgd(0.1), pj.contrastive_divergence(machine), epochs=1, key=KEY)
    data, leaf = (pj.Weighted(data, np.ones(2)), r"\.v") if weighted else (data, "")
    with pytest.raises(ValueError, match=f"^fit: data{leaf}: expected {message}"):
        fit(data, batch_size=2)
    with pytest.raises(ValueError, match=f"^fit: batch 0 of epoch 0{leaf}: expected {message}"):
        fit([data])
