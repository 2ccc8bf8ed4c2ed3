"""Unusual data that JAX would silently wrap, widen, broadcast or drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paysage_jax as pj
from paysage_jax import Weighted, rbm
from paysage_jax.extend import phase_gradient

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
BITS = (rng.random((40, 5)) < 0.4).astype(np.float32)
REAL = rng.normal(size=(40, 5)).astype(np.float32)
BINARY_MACHINE, REAL_MACHINE = rbm.RBM(), rbm.RBM(visible=rbm.Gaussian())
BINARY, GAUSSIAN = BINARY_MACHINE.init(BITS, 3, KEY), REAL_MACHINE.init(REAL, 3, KEY)
ZERO = {"b": jnp.zeros(5, jnp.float32)}


def energy(params, v):
    return -v @ params["b"]


def draw(params, v, key):
    mean = jnp.broadcast_to(jax.nn.sigmoid(params["b"]), v.shape)
    return jax.random.bernoulli(key, mean).astype(v.dtype)


def loss(params, batch):
    return jnp.mean((batch.astype(jnp.float32) - params["b"][None]) ** 2)


MODEL = pj.Model(energy, draw)
CD, LOSS = pj.contrastive_divergence(MODEL), pj.loss_gradient(loss)


def fit(data, estimator=CD, params=ZERO, **options):
    options = {"epochs": 2, "key": KEY, "batch_size": 10, "shuffle": False} | options
    return pj.fit(params, pj.sgd(0.5), estimator, data, **options)


def close(actual, expected, rtol=1e-5, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


def read_as_a_whole(data):
    """All functions that take a data set of zeros and ones."""
    machine, state = BINARY_MACHINE, pj.TrainState(BINARY, (), ())
    return {
        "binary start": BINARY_MACHINE.init(data, 3, KEY)["layers"][0],
        "Gaussian start": REAL_MACHINE.init(data, 3, KEY)["layers"][0],
        "standardize": rbm.standardize(data),
        "annealing": BINARY_MACHINE.annealing(BINARY, data, 2, KEY).path.start["layers"][0],
        "log_likelihood": BINARY_MACHINE.log_likelihood(BINARY, data, 0.0),
        "pseudo": pj.pseudo_log_likelihood(machine, data)(state, KEY),
        "error": pj.reconstruction_error(machine, data)(state, KEY),
        "gap": pj.free_energy_gap(machine, BITS, data)(state, KEY),
    }


# --- annealing of integers ---------------------------------------------------------------------------

FIELDS = np.linspace(-2, 2, 6)
LOG_Z = np.log1p(np.exp(FIELDS)).sum()  # of independent units
PATH = pj.linear_path({"b": jnp.zeros(6)}, {"b": jnp.asarray(FIELDS, jnp.float32)})
COINS = (rng.random((200, 6)) < 0.5).astype(np.float32)
ANNEALING = pj.Annealing(PATH, COINS, 6 * np.log(2))


def annealed(start):
    return pj.annealed_importance_sampling(MODEL, ANNEALING._replace(start=start), KEY, steps=50)


def annealed_back(samples):
    return pj.reverse_annealed_importance_sampling(MODEL, ANNEALING, samples, KEY, steps=50)


def log_prob(v):
    return pj.reverse_ais_log_prob(MODEL, ANNEALING, v, KEY, steps=50)


def tracked(chains):
    start = pj.AnnealedEstimate(ANNEALING.log_z_start, chains)
    track = pj.track_log_partition(MODEL, start, KEY, steps_per_update=50)
    state = track.init(PATH.start)
    updates = jax.tree.map(jnp.subtract, PATH.end, PATH.start)
    return pj.tracked_log_partition(jax.jit(track.update)(updates, state, PATH.start)[1])


@pytest.mark.slow_unless("uint8")
@pytest.mark.parametrize("dtype", ["uint8", "bool", ">f4", ">i8"])
def test_annealing_takes_zeros_and_ones_of_any_dtype(dtype):
    """In unsigned arithmetic -v wraps around: log Z was -196, and log p of a row was positive."""
    states = COINS.astype(dtype)
    for anneal in (annealed, annealed_back, log_prob, tracked):
        close(anneal(states), anneal(COINS))
    assert annealed(states).log_z == pytest.approx(LOG_Z, abs=0.05)
    close(log_prob(states[:3]), COINS[:3] @ FIELDS - LOG_Z, atol=0.2)


def test_annealing_keeps_categories_where_it_is_told_to():
    def of_letters(params, v):
        return -params["h"][jnp.arange(4)[None], v].sum(axis=1)

    def letters(params, v, key):
        return jax.random.categorical(key, jnp.broadcast_to(params["h"], (len(v), 4, 3))).astype(v.dtype)

    h = rng.normal(size=(4, 3)).astype(np.float32)
    path, start = pj.linear_path({"h": jnp.zeros((4, 3))}, {"h": h}), rng.integers(0, 3, (200, 4)).astype(np.uint8)
    annealing, model = pj.Annealing(path, start, 4 * np.log(3)), pj.Model(of_letters, letters, integer_states=True)
    estimate = pj.annealed_importance_sampling(model, annealing, KEY, 50)
    assert estimate.log_z == pytest.approx(np.log(np.exp(h).sum(axis=1)).sum(), abs=0.1)
    assert estimate.chains.dtype == np.uint8
    assert pj.reverse_ais_log_prob(model, annealing, start[:2], KEY, 50).shape == (2,)
    track = pj.track_log_partition(model, pj.AnnealedEstimate(0.0, start), KEY)
    assert track.init(path.start).chains.dtype == np.uint8
    with pytest.raises(TypeError) as caught:
        pj.annealed_importance_sampling(pj.Model(of_letters, letters), annealing, KEY, 50)
    assert "integer_states=True" in "".join(caught.value.__notes__)


# --- numbers that JAX would change -------------------------------------------------------------------


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="there 64 bits are kept")
def test_integers_are_not_wrapped_around():
    """2**33 became 0, and a mean of 8.6e9 was 4.7."""
    large = np.array([[2**33, 1], [2**33 + 5, 0], [2**33 + 9, 3]])
    labels = BITS, np.arange(40) + 2**40
    message = r"8589934592 in row 0, column 0 does not fit in int32; pass floats"
    for read in (rbm.standardize, lambda data: REAL_MACHINE.init(data, 2, KEY)):
        with pytest.raises(ValueError, match=message):
            read(large)
    with pytest.raises(ValueError, match="expected numbers in"):
        BINARY_MACHINE.init(np.array([[2**32, 1], [2**32 + 1, 0]]), 2, KEY)  # which would be zeros and ones
    for data, options in ((labels, {}), ([labels], {"batch_size": None})):
        with pytest.raises(ValueError, match=r"\[1\]: 1099511627776 in row 0 does not fit in int32"):
            fit(data, LOSS, **options)
    kept = pj.contrastive_divergence(pj.Model(energy, draw, integer_states=True))
    with pytest.raises(ValueError, match="does not fit in int32"):
        fit(np.full((40, 5), 2**33), kept)
    far = rbm.standardize(large.astype(float) * [1, 1e-9] + [[0, 0], [1e9, 0], [0, 0]])
    np.testing.assert_allclose(far.mean[0], large[:, 0].mean() + 1e9 / 3, rtol=1e-6)


def test_integers_that_become_floats_may_be_large():
    state = pj.Outcome(fit(np.full((40, 5), 2**33)).outcome)
    assert state is pj.Outcome.EPOCHS_EXHAUSTED


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="there 64 bits are kept")
def test_a_double_beyond_float32_is_named_in_every_batch():
    """A number that became infinite after the check."""
    data = BITS.astype(float)
    data[25, 3] = 1e39
    message = r"expected finite numbers, got 1e\+39 in row {}, column 3, which is infinite in float32"
    with pytest.raises(ValueError, match="fit: data: " + message.format(25)):
        fit(data)
    with pytest.raises(ValueError, match="fit: batch 1 of epoch 0: " + message.format(5)):
        fit([data[:10], data[20:30]], batch_size=None)
    with pytest.raises(ValueError, match="init: data: " + message.format(25)):
        REAL_MACHINE.init(data, 2, KEY)
    with pytest.raises(ValueError, match="start: expected finite numbers, got 1e"):
        annealed(np.where(COINS == 1, 1e39, 0.0))


@pytest.mark.slow_unless(">u2")
@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">u2", "longdouble"])
def test_other_byte_orders_and_long_doubles_are_data(dtype):
    """As from FITS, netCDF and IDX files; JAX's message was "Error interpreting argument to stage"."""
    data = BITS.astype(dtype)
    close(read_as_a_whole(data), read_as_a_whole(BITS))
    for params in (fit(data).params, fit([data], batch_size=None).params):
        assert np.all(np.isfinite(params["b"]))
    close(fit(data).params, fit(BITS).params)
    close(fit((data,), LOSS_OF_FIRST).params, fit((BITS,), LOSS_OF_FIRST).params)
    by_hand = CD.estimate(ZERO, data, (), KEY)[0]
    close(by_hand, CD.estimate(ZERO, BITS, (), KEY)[0])
    units = rbm.standardize(REAL)
    close(units.apply(data), units.apply(BITS))


LOSS_OF_FIRST = pj.loss_gradient(lambda params, batch: loss(params, batch[0]))


class Tensor:
    """An array as from torch, whose dtype is not a dtype of NumPy."""

    dtype = "torch.float32"

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_arrays_of_another_library_by_hand():
    close(read_as_a_whole(Tensor(BITS)), read_as_a_whole(BITS))
    for estimator in (CD, pj.persistent_contrastive_divergence(MODEL)):
        state = estimator.init(ZERO, Tensor(BITS), KEY)
        gradient = estimator.estimate(ZERO, Tensor(BITS), state, KEY)[0]
        close(gradient, estimator.estimate(ZERO, BITS, state, KEY)[0])
    close(
        phase_gradient(energy)(ZERO, Tensor(BITS), Tensor(1 - BITS)),
        phase_gradient(energy)(ZERO, BITS, 1 - BITS),
    )
    close(annealed(Tensor(COINS)).log_z, annealed(COINS).log_z)


def test_an_argument_that_is_not_a_number_is_named():
    for data, dtype in (
        (BITS.astype("m8[s]"), "timedelta64"),  # of which fit learned the seconds
        (BITS.astype("M8[s]"), "datetime64"),
        (BITS.astype(object), "object"),
    ):
        for read in (fit, lambda data: rbm.standardize(data), lambda data: fit([data], batch_size=None)):
            with pytest.raises(TypeError, match=f"expected numbers, got dtype {dtype}"):
                read(data)
    with pytest.raises(TypeError, match="start: expected a plain array"):
        annealed(np.ma.masked_greater(COINS, 0.5))  # whose hidden values were used


def test_a_loss_may_take_keys():
    estimator = pj.loss_gradient(lambda params, keys: loss(params, jax.vmap(lambda k: jax.random.normal(k, 5))(keys)))
    keys = jax.random.split(KEY, 40)
    close(
        fit(keys, estimator).params,
        fit([keys[i : i + 10] for i in range(0, 40, 10)], estimator, batch_size=None).params,
    )


def test_units_reject_complex_numbers():
    for read in (
        lambda data: BINARY_MACHINE.init(data, 2, KEY),
        lambda data: REAL_MACHINE.init(data, 2, KEY),  # was a complex machine
        rbm.standardize,
        lambda data: REAL_MACHINE.annealing(GAUSSIAN, data, 2, KEY),
        lambda data: BINARY_MACHINE.log_likelihood(BINARY, data, 0.0),
        lambda data: REAL_MACHINE.log_likelihood(GAUSSIAN, data, 0.0),
        lambda data: pj.pseudo_log_likelihood(BINARY_MACHINE, data),
    ):
        with pytest.raises(TypeError, match="got dtype complex64"):
            read(BITS + 0j)


# --- shapes that would broadcast ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (40, 1), (8, 5, 5), (40, 4)])
@pytest.mark.parametrize(("machine", "params"), [(BINARY_MACHINE, BINARY), (REAL_MACHINE, GAUSSIAN)])
def test_states_of_another_shape_are_refused(machine, params, shape):
    """One row, one column and rows of matrices gave a Gaussian machine likelihoods of other states."""
    v = np.resize(BITS, shape)
    for read in (machine.energy, machine.hidden_mean, lambda p, v: machine.transition(p, v, KEY)):
        with pytest.raises(ValueError, match=r"expected states \(rows, 5\) as in params, got shape"):
            read(params, v)
    with pytest.raises(ValueError, match=r"expected (states|one array) \(rows, (5|visible)\)"):
        machine.log_likelihood(params, v, 0.0)
    with pytest.raises(ValueError, match=r"expected states \(rows, 3\) as in params, got shape"):
        machine.visible_mean(params, v)


def test_standardized_rows_have_the_columns_of_the_data():
    units = rbm.standardize(REAL)
    for transform in (units.apply, units.inverse):
        with pytest.raises(ValueError, match=r"expected shape \(rows, 5\), as of the data, got \(3, 1\)"):
            transform(REAL[:3, :1])  # was (3, 5)
        assert transform(REAL[:3].tolist()).shape == (3, 5)
    close(units.inverse(units.apply(REAL)), REAL)


@pytest.mark.parametrize("wrong", [lambda e: e[:, None], lambda e: e[:, None] + e[None], jnp.sum])
def test_metrics_reject_energies_that_are_not_one_per_row(wrong):
    def energies(params, v):
        return wrong(energy(params, v))

    model = pj.Model(energies, draw)
    for metric in (pj.pseudo_log_likelihood(model, BITS), pj.free_energy_gap(model, BITS, BITS)):
        with pytest.raises(ValueError, match=r"energy\(params, v\): expected shape \(40,\), one for each state"):
            metric(pj.TrainState(ZERO, (), ()), KEY)


@pytest.mark.parametrize("wrong", [lambda v: v[:, :1], lambda v: v[:1]])
def test_a_reconstruction_has_the_shape_of_the_states(wrong):
    metric = pj.reconstruction_error(pj.Model(energy, lambda params, v, key: wrong(v)), BITS)
    with pytest.raises(ValueError, match=r"transition\(params, v, key\): expected shape \(40, 5\) as in v"):
        metric(pj.TrainState(ZERO, (), ()), KEY)


def test_rows_and_labels_are_named_before_their_values():
    for read in (
        lambda data: BINARY_MACHINE.init(data, 2, KEY),
        lambda data: BINARY_MACHINE.annealing(BINARY, data, 2, KEY),
    ):
        with pytest.raises(
            ValueError, match=r"expected one array \(rows, visible\), got shapes \[\(40, 5\), \(40,\)\]"
        ):
            read((BITS, np.arange(40)))


# --- weights -----------------------------------------------------------------------------------------


@pytest.mark.slow_unless("1e-300", "weight2")
@pytest.mark.parametrize("weight", [1e-300, np.float32(1e-40), np.float32(3e38), 1e300, 1e308, True, np.uint8(7)])
def test_only_ratios_of_weights_count(weight):
    """Sums of such weights overflow or underflow: likelihoods were NaN, and a run silently made no step."""
    weights = np.full(40, weight)
    close(read_as_a_whole(Weighted(BITS, weights)), read_as_a_whole(BITS))
    close(fit(Weighted(BITS, weights)).params, fit(BITS).params)
    close(
        phase_gradient(energy)(ZERO, BITS, 1 - BITS, weights),
        phase_gradient(energy)(ZERO, BITS, 1 - BITS),
    )


def test_traced_weights_may_be_huge():
    data = Weighted(BITS, jnp.full(40, 3e38))
    close(
        jax.jit(lambda d: BINARY_MACHINE.log_likelihood(BINARY, d, 0.0))(data),
        BINARY_MACHINE.log_likelihood(BINARY, BITS, 0.0),
    )
    gradient = jax.jit(lambda w: phase_gradient(energy)(ZERO, BITS, 1 - BITS, w))(data.weights)
    close(gradient, phase_gradient(energy)(ZERO, BITS, 1 - BITS))


def test_weights_that_are_not_real_numbers_or_all_zero_are_named():
    for weights, message in (
        (np.full(40, 1 + 1j), "weights: expected nonnegative numbers, got dtype complex"),
        (np.array(["1"] * 40), "weights: expected (nonnegative )?numbers, got dtype <U1"),
    ):
        data = Weighted(BITS, weights)
        for read in (fit, rbm.standardize, lambda data: CD.estimate(ZERO, data, (), KEY)):
            with pytest.raises(TypeError, match=message):
                read(data)
    with pytest.raises(ValueError, match=r"log_likelihood: v.weights: expected some positive weight, all are 0"):
        BINARY_MACHINE.log_likelihood(BINARY, Weighted(BITS, np.zeros(40)), 0.0)  # was NaN
    with pytest.raises(TypeError, match="v_data: expected rows, got Weighted; pass the rows and weights="):
        phase_gradient(energy)(ZERO, Weighted(BITS, np.ones(40)), BITS)


@pytest.mark.parametrize("inside", [lambda w: Weighted(w, w.weights), lambda w: (w,), lambda w: {"v": w}])
def test_weights_inside_the_data_are_named(inside):
    """The error used to say to give only the rows, or nothing."""
    with pytest.raises((AttributeError, TypeError)) as caught:
        fit(inside(Weighted(BITS, np.ones(40))))
    notes = [note for note in caught.value.__notes__ if "JAX" not in note]
    assert notes == [
        "Weighted is inside the data; pass one Weighted(v, weights), with v the array, tuple or dict of rows."
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_integer_weights_of_a_loader_are_not_of_half_precision(dtype):
    """100001 was infinite in float16, and 257 was 256 in bfloat16."""
    params = {"b": jnp.zeros(5, dtype)}
    for weight in (257, 100001, 2**33):
        batches = [Weighted(BITS.astype(np.uint8), np.full(40, weight))]
        result = fit(batches, Watching(MODEL), params, batch_size=None, epochs=1)
        np.testing.assert_allclose(result.history["weight"], weight, rtol=1e-6)


class Watching(pj.contrastive_divergence):
    """The estimator reports the mean weight; the history divides by it."""

    def estimate(self, params, batch, estimator_state, key):
        mean = jnp.mean(batch.weights.astype(jnp.float32))
        return jax.tree.map(jnp.zeros_like, params), estimator_state, {"weight": mean**2}


# --- loaders, chains, penalties ----------------------------------------------------------------------


def test_a_function_that_returns_weighted_data_returns_no_batches():
    """Rows and weights used to be two batches."""
    with pytest.raises(TypeError, match=r"data\(\) must return an iterable of batches, got a Weighted"):
        fit(lambda epoch: Weighted(BITS, np.ones(40)), LOSS, batch_size=None)


def test_a_batch_without_rows_is_named():
    for estimator in (CD, LOSS):  # of the loss the history was NaN
        with pytest.raises(ValueError, match="fit: batch 1 of epoch 0: expected rows, got 0"):
            fit([BITS, BITS[:0]], estimator, batch_size=None)


def test_chains_start_from_finite_states():
    """Bernoulli draws made zeros of NaN."""
    with pytest.raises(ValueError, match="chains: expected finite numbers, got nan in row 0, column 0"):
        pj.persistent_contrastive_divergence(MODEL, chains=np.full((3, 5), np.nan))


def test_the_energy_penalty_in_half_precision():
    """Squares of energies above 255 overflow float16, where 1e-8 is 0."""

    def steep(params, v):
        return 100 * (-v @ params["b"] - 4)

    def statistics(dtype):
        estimator = pj.contrastive_divergence(pj.Model(steep, lambda params, v, key: v), energy_penalty=1e-8)
        return estimator.estimate({"b": jnp.ones(5, dtype)}, BITS.astype(dtype), (), KEY)[2]

    exact = 2e-8 * np.mean((100.0 * (BITS.sum(axis=1) + 4)) ** 2)
    for dtype in ("float16", "float32"):
        assert statistics(dtype).energy_penalty == pytest.approx(exact, rel=1e-3)
