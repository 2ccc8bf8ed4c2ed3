"""Users' data: integers, bools, missing values, sparse matrices, images and labels."""

from typing import Any

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    Model,
    Outcome,
    TrainState,
    Weighted,
    contrastive_divergence,
    fit,
    free_energy_gap,
    loss_gradient,
    parallel_tempering,
    persistent_contrastive_divergence,
    rbm,
    sgd,
    train_step,
)
from paysage_jax.extend import phase_gradient
from tests.helpers.problems import rbm_tree
from tests.helpers.runs import assert_identical, compilations

KEY = jax.random.key(0)
UNITS = 4
PARAMS = {"b": jnp.array([0.5, -1.0, 0.3, 2.0])}
BITS = np.random.default_rng(0).integers(0, 2, (12, UNITS))
FLOATS = BITS.astype(np.float32)
RUN = dict(epochs=2, key=KEY)


def energy(params, v):
    """As in the README: for unsigned integers -v wraps around, and bools have no minus."""
    return -v @ params["b"]


def turn(params, v, key):
    """A deterministic kernel, in the dtype of the states."""
    return jnp.roll(v, 1, axis=1)


MODEL = Model(energy, turn)
cd = contrastive_divergence(MODEL)
pcd = persistent_contrastive_divergence(MODEL, num_chains=5)
pt = parallel_tempering(MODEL, num_chains=3, betas=(0.5, 1.0))
each = pytest.mark.parametrize("estimator", [cd, pcd, pt], ids=["cd", "pcd", "pt"])
each_dtype = pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])


def parts(data, size=6):
    return [data[i : i + size] for i in range(0, len(data), size)]


def run(estimator, data, params: Any = PARAMS, **options):
    options = RUN | ({"batch_size": 6} if not isinstance(data, list) else {}) | options
    return fit(params, sgd(0.1), estimator, data, **options)


# --- integers and bools ------------------------------------------------------------------------------


@pytest.mark.slow_unless("cd-uint8", "pcd-bool", "pt-int64")
@each_dtype
@each
def test_integers_and_bools_are_floats_bit_for_bit(estimator, dtype):
    """From memory, from NumPy or JAX, and from a loader."""
    data = BITS.astype(dtype)
    expected = run(estimator, FLOATS)
    assert_identical(run(estimator, data), expected)
    assert_identical(run(estimator, jnp.array(data)), expected)
    assert_identical(run(estimator, parts(data)), run(estimator, parts(FLOATS)))


def test_an_energy_of_bytes_is_learned_the_right_way_round():
    data = np.repeat(np.array([[1, 0, 1, 1]], np.uint8), 20, axis=0)
    result = fit({"b": jnp.zeros(4)}, sgd(1.0), cd, data, epochs=3, batch_size=20, key=KEY)
    np.testing.assert_allclose(
        result.params["b"], [0, -3, 3, 0], atol=1e-5
    )  # 3 (mean of the data - mean of the turned)


@pytest.mark.slow_unless("bfloat16")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_they_have_the_dtype_of_the_parameters(dtype):
    seen = []

    def noted(params, v):
        seen.append(v.dtype)
        return energy(params, v)

    params = {"b": PARAMS["b"].astype(dtype), "counter": jnp.zeros((), dtype)}
    run(contrastive_divergence(Model(noted, turn)), BITS, params, epochs=1)
    assert set(seen) == {jnp.dtype(dtype)}


def test_they_are_floats_for_a_metric_too():
    def measured(data):
        return run(cd, data, metrics={"gap": free_energy_gap(MODEL, data[:7], data)})

    assert_identical(measured(BITS.astype(np.uint8)), measured(FLOATS))


@pytest.mark.slow_unless("cd-bool", "pcd-int64", "pt-uint8")
@each_dtype
@each
def test_by_hand_too(estimator, dtype):
    def step(data):
        state = TrainState(jax.tree.map(jnp.array, PARAMS), sgd(0.1).init(PARAMS), estimator.init(PARAMS, data, KEY))
        return train_step(estimator, sgd(0.1))(state, data, KEY)

    assert_identical(step(BITS.astype(dtype)), step(FLOATS))


@each_dtype
def test_in_a_phase_gradient_and_as_the_start_of_chains_too(dtype):
    gradient = phase_gradient(energy)
    assert_identical(gradient(PARAMS, BITS.astype(dtype), BITS[:5].astype(dtype)), gradient(PARAMS, FLOATS, FLOATS[:5]))
    for make in (persistent_contrastive_divergence, parallel_tempering):
        whole, floats = (make(MODEL, chains=v) for v in (BITS.astype(dtype), FLOATS))
        assert_identical(whole.init(PARAMS, FLOATS, KEY), floats.init(PARAMS, FLOATS, KEY))


def of_categories(params, v):
    return jnp.sum(params["b"][v], axis=1)


@pytest.mark.slow_unless("persistent_contrastive_divergence")
@pytest.mark.parametrize("make", [contrastive_divergence, persistent_contrastive_divergence, parallel_tempering])
def test_a_model_of_categories_keeps_them(make):
    """The energy uses them as indices."""
    result = run(make(Model(of_categories, turn, integer_states=True)), BITS.astype(np.int32))
    assert int(result.outcome) == Outcome.EPOCHS_EXHAUSTED
    with pytest.raises(TypeError) as caught:
        run(make(Model(of_categories, turn)), BITS)
    assert "set integer_states=True" in "".join(caught.value.__notes__)


def test_so_does_its_phase_gradient_and_a_loader():
    data = BITS.astype(np.uint8)
    gradient = phase_gradient(of_categories, integer_states=True)(PARAMS, data, data)
    np.testing.assert_array_equal(gradient["b"], np.zeros(4))
    result = run(contrastive_divergence(Model(of_categories, turn, integer_states=True)), parts(data))
    assert int(result.outcome) == Outcome.EPOCHS_EXHAUSTED


def test_a_loss_gets_its_batch_as_it_is():
    """Integers may be labels."""

    def cross_entropy(w, batch):
        x, y = batch
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        log_p = jax.nn.log_softmax(x.astype(float) @ w)
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))

    x, y = BITS.astype(np.uint8), BITS[:, 0].astype(np.int32)
    for source in ((x, y), [(x, y)]):
        result = run(loss_gradient(cross_entropy), source, jnp.zeros((4, 2)))
        assert result.history["loss"][1] < result.history["loss"][0]


def test_other_integers_compile_nothing_again():
    run(cd, BITS.astype(np.uint8))
    with compilations() as programs:
        run(cd, 1 - BITS.astype(np.uint8))
    assert programs == []


# --- numbers that are not finite ---------------------------------------------------------------------


def spoiled(value, index=(7, 2), data=FLOATS):
    data = data.copy()
    data[index] = value
    return data


HOLES = {
    "numpy": (spoiled(np.nan), r"fit: data: expected finite numbers, got nan in row 7, column 2; fill in"),
    "jax": (jnp.array(spoiled(np.nan)), r"fit: data: expected finite numbers, got nan in row 7, column 2"),
    "float64": (spoiled(-np.inf).astype(np.float64), "got -inf in row 7, column 2"),
    "half": (spoiled(np.inf).astype(jnp.bfloat16), "got inf in row 7, column 2"),
    "tree": ({"x": FLOATS, "y": spoiled(np.nan)}, r"fit: data\['y'\]: .*got nan in row 7, column 2"),
    "weighted": (Weighted(spoiled(np.nan), np.ones(12)), r"fit: data.v: .*got nan in row 7, column 2"),
    "images": (spoiled(np.nan, (7, 1, 0), FLOATS.reshape(12, 2, 2)), r"got nan in row 7, column \(1, 0\)"),
    "one number a row": (spoiled(np.nan, 3, FLOATS[:, 0]), "got nan in row 3; fill in"),
    "loader": ([FLOATS, spoiled(np.nan)], "fit: batch 1 of epoch 0: .*got nan in row 7, column 2"),
    "loader on the device": ([jnp.array(FLOATS), jnp.array(spoiled(np.nan))], "fit: batch 1 .*got nan in row 7, col"),
    "loader of trees": (
        [{"x": jnp.array(FLOATS), "y": spoiled(np.nan)}],
        r"batch 0 .*\['y'\]: .*got nan in row 7, col",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOLES.values(), ids=HOLES.keys())
def test_a_number_that_is_not_finite_is_named(data, message):
    tree = isinstance(data, dict) or (isinstance(data, list) and isinstance(data[0], dict))
    of_tree = Model(lambda p, v: energy(p, v["x"]), lambda p, v, key: v)
    estimator = contrastive_divergence(of_tree) if tree else cd
    with pytest.raises(ValueError, match=message):
        run(estimator, data)


@pytest.mark.parametrize("data", [spoiled(np.nan), [spoiled(np.nan)]], ids=["in memory", "loader"])
def test_a_loss_may_mask_them(data):
    masked = loss_gradient(lambda params, x: jnp.nanmean(x) * jnp.sum(params["b"]))
    assert int(run(masked, data).outcome) == Outcome.EPOCHS_EXHAUSTED


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("place", [np.array, jnp.array])
def test_one_in_a_later_epoch_leaves_the_epochs_done(place, remote, monkeypatch):
    """Also if the host must not wait for a batch, as on a GPU, and checks it some steps later."""
    if remote:
        for module in ("_core.batches", "_train.source"):
            monkeypatch.setattr(f"paysage_jax.{module}.is_remote", lambda x: isinstance(x, jax.Array))

    def data(epoch):
        return [place(FLOATS)] * 9 + [place(spoiled(np.nan) if epoch == 2 else FLOATS)]

    with pytest.raises(ValueError, match=r"fit: batch 9 of epoch 2: .*got nan in row 7, column 2") as caught:
        fit(PARAMS, sgd(0.1), cd, data, epochs=4, key=KEY)
    assert int(caught.value.result.epochs_done) == 2


def test_a_large_array_is_looked_through_to_its_end():
    data = np.zeros((3000, 1000), np.float32)
    data[2999, 999] = np.nan
    with pytest.raises(ValueError, match="got nan in row 2999, column 999"):
        fit({"b": jnp.zeros(1000)}, sgd(0.1), cd, data, epochs=1, batch_size=10, key=KEY)


@pytest.mark.parametrize("make", [contrastive_divergence, persistent_contrastive_divergence])
def test_holes_may_be_where_they_are_filled_in(make):
    """And nowhere else; infinity is not a missing value."""
    estimator = make(Model(energy, turn, sample_hidden=lambda params, v, key: jnp.where(jnp.isnan(v), 0.25, v)))
    filled = spoiled(0.25)
    expected = run(make(MODEL), [filled]).params
    for data in ([spoiled(np.nan)], [jnp.array(spoiled(np.nan))]):
        chex.assert_trees_all_close(run(estimator, data).params, expected, rtol=1e-6)
    assert int(run(estimator, spoiled(np.nan)).outcome) == Outcome.EPOCHS_EXHAUSTED
    for data in (spoiled(np.inf), [jnp.array(spoiled(np.inf))]):
        with pytest.raises(ValueError, match="expected finite numbers, got inf in row 7, column 2"):
            run(estimator, data)


def test_by_hand_the_first_batch_is_looked_at():
    for call in (
        lambda: cd.init(PARAMS, spoiled(np.nan), KEY),
        lambda: pcd.init(PARAMS, spoiled(np.nan), KEY),
        lambda: phase_gradient(energy)(PARAMS, spoiled(np.nan), FLOATS),
    ):
        with pytest.raises(ValueError, match=r"(batch|v_data): expected finite numbers, got nan in row 7, column 2"):
            call()


# --- hints -------------------------------------------------------------------------------------------

RBM = rbm_tree(UNITS, 3)
IMAGES = FLOATS.reshape(12, 2, 2)
HINTS = {
    "images": (IMAGES, r"A row has the shape \(2, 2\); if a state is a vector, pass data.reshape\(len\(data\), -1\)"),
    "batches of images": ([IMAGES], r"A row has the shape \(2, 2\)"),
    "one array in a list": ([[FLOATS]], "The data are a list of one array; pass the array itself"),
    "one array in a tuple": ((FLOATS,), "The data are a tuple of one array; pass the array itself"),
    "rows and labels": (
        (FLOATS, BITS[:, 0]),
        r"a tuple of arrays of shapes \[\(\d+, 4\), .*; of rows and labels, pass only",
    ),
    "batches of both": ([(FLOATS, BITS[:, 0])], "of rows and labels, pass only the rows"),
}


@pytest.mark.parametrize("make", [contrastive_divergence, persistent_contrastive_divergence])
@pytest.mark.parametrize(("data", "hint"), HINTS.values(), ids=HINTS.keys())
def test_what_to_do_is_said_and_nothing_else(make, data, hint):
    with pytest.raises(Exception, match=hint) as caught:
        run(make(rbm.RBM()), data, RBM)
    assert "sample_hidden=" not in "".join(caught.value.__notes__)
    assert "integer_states" not in "".join(caught.value.__notes__)


def test_where_nothing_is_known_nothing_is_said():
    """Rows of another width."""
    for make in (contrastive_divergence, persistent_contrastive_divergence):
        with pytest.raises(ValueError, match=r"expected states \(rows, \d\) as in params, got shape") as caught:
            run(make(rbm.RBM()), FLOATS[:, :3], RBM)
        notes = "".join(note for note in caught.value.__notes__ if "JAX" not in note)
        assert notes == ""


class Sparse:
    """Like csr_matrix of SciPy: not an array, but iterable, with a method that makes it dense."""

    def __init__(self, array):
        self._array, self.shape = array, array.shape

    def toarray(self):
        return self._array

    def __iter__(self):
        return map(Sparse, self._array[:, None])


def test_a_sparse_matrix_is_named_and_what_to_do():
    from jax.experimental.sparse import BCOO

    for data in (Sparse(FLOATS), {"x": Sparse(FLOATS)}, [Sparse(FLOATS)], [Weighted(Sparse(FLOATS), np.ones(12))]):
        with pytest.raises(TypeError, match=r"got the sparse matrix Sparse; use data.toarray\(\), or") as caught:
            run(cd, data)
        assert "numpy.array" not in str(caught.value)
    for data in (BCOO.fromdense(jnp.array(FLOATS)), (BCOO.fromdense(jnp.array(FLOATS)),)):
        with pytest.raises(TypeError, match=r"got the sparse matrix BCOO; use data.todense\(\), or"):
            run(cd, data)


def test_numpy_array_is_advised_for_lists_only():
    class Batches:
        def __iter__(self):
            return iter(parts(FLOATS))

    for data, options in ((Batches(), {"batch_size": 5}), (["text"], {}), ([None], {})):
        with pytest.raises((TypeError, ValueError)) as caught:
            fit(PARAMS, sgd(0.1), cd, data, **RUN, **options)
        assert "numpy.array" not in str(caught.value)


# --- laws of the data --------------------------------------------------------------------------------

free_energy_gradient = jax.jit(phase_gradient(rbm.RBM().energy))
bits = st.lists(st.lists(st.integers(0, 1), min_size=UNITS, max_size=UNITS), min_size=6, max_size=6).map(np.array)
on_bits = hypothesis.given(bits, st.permutations(range(6)), st.permutations(range(UNITS)))
few = hypothesis.settings(max_examples=15)


def as_machine(b, c, matrix):
    return {"layers": [{"loc": b}, {"loc": c}], "weights": [{"matrix": matrix}]}


def parts_of(machine):
    return machine["layers"][0]["loc"], machine["layers"][1]["loc"], machine["weights"][0]["matrix"]


@few
@on_bits
def test_the_gradient_permutes_with_rows_and_columns(v, rows, columns):
    b, c, matrix = parts_of(RBM)
    model = np.roll(v, 1, axis=1)
    gb, gc, gm = parts_of(free_energy_gradient(RBM, v, model))
    moved = as_machine(b[np.array(columns)], c, matrix[np.array(columns)])
    hb, hc, hm = parts_of(free_energy_gradient(moved, v[rows][:, columns], model[rows][:, columns]))
    np.testing.assert_allclose(hb, gb[np.array(columns)], atol=1e-6)
    np.testing.assert_allclose(hc, gc, atol=1e-6)
    np.testing.assert_allclose(hm, gm[np.array(columns)], atol=1e-6)


@few
@on_bits
def test_the_gradient_of_complemented_bits_is_that_of_the_complemented_machine(v, rows, columns):
    """b → -b, W → -W, c → c + Σ W leaves the energies of 1 - v as they were, but for a constant: chain rule."""
    b, c, matrix = parts_of(RBM)
    model = v[rows][:, columns]
    gb, gc, gm = parts_of(free_energy_gradient(RBM, v, model))
    flipped = as_machine(-b, c + matrix.sum(axis=0), -matrix)
    hb, hc, hm = parts_of(free_energy_gradient(flipped, 1 - v.astype(np.uint8), 1 - model.astype(np.uint8)))
    np.testing.assert_allclose(hb, -gb, atol=1e-6)
    np.testing.assert_allclose(hc, gc, atol=1e-6)
    np.testing.assert_allclose(hm, gc[None, :] - gm, atol=1e-6)


@few
@hypothesis.given(bits, st.permutations([0, 0, 0, 1, 2, 3]))
def test_a_row_twice_is_a_row_of_weight_two(v, counts):
    model = np.roll(v, 1, axis=1)
    expected = free_energy_gradient(RBM, np.repeat(v, counts, axis=0), model)
    actual = free_energy_gradient(RBM, v, model, np.array(counts, np.float32))
    chex.assert_trees_all_close(actual, expected, atol=1e-6)


def test_a_run_on_permuted_rows_of_one_batch_is_the_same():
    order = np.random.default_rng(1).permutation(12)
    one, other = (run(cd, data, batch_size=12).params for data in (FLOATS, FLOATS[order]))
    chex.assert_trees_all_close(one, other, atol=1e-6)


def test_a_run_on_complemented_bits_is_the_opposite():
    """For the energy -v·b from zero, with a kernel that permutes bits whatever their values."""
    zero = {"b": jnp.zeros(UNITS)}
    one, other = (run(cd, v.astype(np.uint8), zero).params["b"] for v in (BITS, 1 - BITS))
    np.testing.assert_allclose(one, -other, atol=1e-6)
    assert np.abs(one).max() > 0
