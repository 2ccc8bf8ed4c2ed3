"""Data in memory and loaders: when batches are drawn, copies, conversions, and rejected data."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import fit, loss_gradient, sgd
from paysage_jax._core.batches import as_arrays
from tests.helpers.runs import (
    BATCH,
    DATA,
    KEY,
    KINDS,
    PARAMS,
    ROWS,
    assert_identical,
    batches_of,
    compilations,
    regression,
    squares,
)

RUN = dict(epochs=3, key=KEY)


def run(data, **options):
    return fit(PARAMS, sgd(0.1), regression, data, **(RUN | options))


to_one = loss_gradient(lambda w, x: jnp.mean((x @ w - 1) ** 2))


def run_on_x(data, **options):
    return fit(jnp.zeros(3), sgd(0.1), to_one, data, **(RUN | options))


X = DATA["x"]

# --- what is drawn -----------------------------------------------------------------------------------


class Counted:
    """A loader that shuffles with its own random numbers, and counts its passes and the batches drawn."""

    def __init__(self):
        self.generator = np.random.default_rng(0)
        self.passes = self.batches = 0

    def __iter__(self):
        self.passes += 1
        order = self.generator.permutation(ROWS)
        for batch in batches_of(jax.tree.map(lambda x: x[order], DATA)):
            self.batches += 1
            yield batch


def test_every_epoch_is_one_pass_of_the_loader_also_after_a_cut():
    whole, cut = Counted(), Counted()
    expected = run(whole)
    assert (whole.passes, whole.batches) == (3, 15)
    result = run(cut, epochs=1)
    assert (cut.passes, cut.batches) == (1, 5)
    assert_identical(run(cut, resume=result), expected)  # the loader's random numbers continue
    assert (cut.passes, cut.batches) == (3, 15)


def drawing(drawn):
    """A function of the epoch that shuffles with its own random numbers, and records the batches drawn."""

    def data(epoch):
        order = np.random.default_rng(epoch).permutation(ROWS)
        for i, batch in enumerate(batches_of(jax.tree.map(lambda x: x[order], DATA))):
            drawn.append((epoch, i))
            yield batch

    return data


def test_a_function_of_the_epoch_is_drawn_from_once_an_epoch_also_after_a_restart(tmp_path):
    drawn, everything = [], [(epoch, i) for epoch in range(3) for i in range(5)]
    expected = run(drawing(drawn))
    assert drawn == everything
    drawn.clear()
    run(drawing(drawn), epochs=2, checkpoints=tmp_path)
    assert_identical(run(drawing(drawn), checkpoints=tmp_path), expected)
    assert drawn == everything
    drawn.clear()
    assert_identical(run(drawing(drawn), checkpoints=tmp_path), expected)
    assert_identical(run(drawing(drawn), resume=expected), expected)
    assert drawn == [(2, 0)] * 2  # a run that has ended: one batch of the last epoch, for its shape


# --- what a loader may be ----------------------------------------------------------------------------


class Batches:
    def __iter__(self):
        return iter(batches_of(DATA))


def generated():
    yield from batches_of(DATA)


def of(source, seed=7):
    assert seed == 7
    return source


LOADERS = {
    "list": batches_of(DATA),
    "object": Batches(),
    "generator function": generated,
    "function": lambda: batches_of(DATA),
    "function of the epoch": lambda epoch: batches_of(DATA) if epoch in range(3) else None,
    "of another name": lambda e: batches_of(DATA) if e in range(3) else None,
    "that has it by default": lambda epoch=None: batches_of(DATA) if epoch in range(3) else None,
    "that has another default": partial(of, batches_of(DATA)),
    "that returns an iterator": lambda: iter(batches_of(DATA)),
}


@pytest.mark.parametrize("data", LOADERS.values(), ids=LOADERS.keys())
def test_batches_come_from(data):
    assert_identical(run(data), run(batches_of(DATA)))


class Tensor:
    """An array of another library, for example torch: it converts itself, and is iterable."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)

    def __iter__(self):
        return map(Tensor, self._array)


def pairs(params, batch):
    x, y = batch
    return squares(params, {"x": x, "y": y})


of_pairs = loss_gradient(pairs)


def test_a_batch_may_be_a_list_of_arrays_of_another_library():
    """As from torch's loader for a data set of tuples."""
    lists = [[Tensor(batch["x"]), Tensor(batch["y"])] for batch in batches_of(DATA)]
    result = fit(PARAMS, sgd(0.1), of_pairs, lists, **RUN)
    chex.assert_trees_all_equal(result.params, run(batches_of(DATA)).params)


def test_a_loader_of_torch():
    torch = pytest.importorskip("torch")  # no dependency of the tests: it is large
    data = torch.utils.data.TensorDataset(*map(torch.tensor, (DATA["x"], DATA["y"])))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    result = fit(PARAMS, sgd(0.1), of_pairs, loader, **RUN)
    chex.assert_trees_all_equal(result.params, run(batches_of(DATA)).params)
    in_memory = run(jax.tree.map(torch.tensor, DATA), batch_size=BATCH)
    assert_identical(in_memory, run(DATA, batch_size=BATCH))


def test_a_loader_of_grain():
    grain = pytest.importorskip("grain")  # no dependency of the tests
    rows = [jax.tree.map(lambda x, i=i: x[i], DATA) for i in range(ROWS)]
    data = grain.MapDataset.source(rows).batch(BATCH)
    expected = run(batches_of(DATA))
    assert_identical(run(data), expected)
    assert_identical(run(data.to_iter_dataset()), expected)
    sampler = grain.samplers.SequentialSampler(ROWS, grain.sharding.NoSharding())
    batched = [grain.transforms.Batch(BATCH)]
    assert_identical(run(grain.DataLoader(data_source=rows, sampler=sampler, operations=batched)), expected)


def aligned(shape):
    """A NumPy array whose memory JAX would alias."""
    size = 4 * int(np.prod(shape))
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def test_a_loader_may_fill_one_buffer_again_and_again():
    class Loader:
        buffer = aligned((BATCH, 3))

        def __iter__(self):
            for i in range(0, ROWS - BATCH, BATCH):
                self.buffer[:] = X[i : i + BATCH]
                yield self.buffer

    separate = [batch.copy() for batch in Loader()]
    assert_identical(run_on_x(Loader()), run_on_x(separate))


def test_a_step_compiles_once_for_each_size_of_batch():
    sizes = [4, 2, 4, 6, 2, 1]
    ends = np.cumsum(sizes)
    batches = [X[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    run_on_x(batches[:1], epochs=1)
    with compilations() as programs:
        run_on_x(batches)
    assert programs.count("jit(step)") == 3  # 2, 6 and 1


# --- data in memory ----------------------------------------------------------------------------------


def test_data_on_the_device_are_not_copied_and_those_of_numpy_are():
    tree = {"device": jnp.arange(6.0), "host": aligned((6,))}
    tree["host"][:] = np.arange(6)
    arrays = as_arrays("data", tree)
    assert arrays["device"].unsafe_buffer_pointer() == tree["device"].unsafe_buffer_pointer()
    tree["host"][:] = 0
    np.testing.assert_array_equal(arrays["host"], np.arange(6))


def test_a_run_holds_no_second_copy_of_data_on_the_device():
    data = jax.tree.map(jnp.array, DATA)
    sizes = []

    def count(result):
        sizes.append(sum(x.shape[:1] == (ROWS,) for x in jax.live_arrays()))

    before = sum(x.shape[:1] == (ROWS,) for x in jax.live_arrays())
    run(data, batch_size=BATCH, callback=count)
    assert sizes == [before] * 3


class Frame:
    """Like a pandas table: iterating over it gives the names of its columns."""

    def __iter__(self):
        return iter(["a", "b", "c"])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(X, dtype)


@pytest.mark.parametrize("data", [Tensor(X), Frame()])
def test_what_converts_itself_is_data_in_memory(data):
    assert_identical(run_on_x(data, batch_size=BATCH), run_on_x(X, batch_size=BATCH))


def test_a_table_of_pandas():
    pandas = pytest.importorskip("pandas")  # no dependency of the tests
    table = pandas.DataFrame(X, columns=["a", "b", "c"])
    assert_identical(run_on_x(table, batch_size=BATCH), run_on_x(X, batch_size=BATCH))
    with pytest.raises(TypeError, match="expected numbers, got dtype object"):
        run_on_x(table.assign(c="text"), batch_size=BATCH)


# --- what is refused ---------------------------------------------------------------------------------

ROWS_OF_LISTS = np.zeros((500, 50)).tolist()
REFUSED = {
    "iterator": (map(dict, batches_of(DATA)), {}, ValueError, "data is an iterator, which can be read only"),
    "generator": (
        (batch for batch in batches_of(DATA)),
        {},
        ValueError,
        "data is an iterator, which can be read only",
    ),
    "number": (3, {}, TypeError, "data must be arrays with a leading axis or an iterable of batches, got int"),
    "none": (None, {"batch_size": 5}, TypeError, "data must be arrays .* got NoneType"),
    "class": (Batches, {}, TypeError, "data must be arrays"),
    "text": ("text", {}, TypeError, "expected batches of arrays, got a str"),
    "empty": ([], {}, ValueError, "data yielded no batch in epoch 0"),
    "nested list": (ROWS_OF_LISTS, {}, TypeError, r"got a list; for a list of rows, pass numpy.array\(data\)"),
    "nested list, size": (ROWS_OF_LISTS, {"batch_size": 5}, ValueError, r"numpy.array\(data\) and batch_size"),
    "numbers": ([1.0, 2.0], {}, TypeError, "expected batches of arrays, got a float"),
    "rows": (list(X), {"batch_size": 5}, ValueError, r"batch_size must be None for an iterable.*numpy.array\(data\)"),
    "lists in a dict": (DATA | {"x": ROWS_OF_LISTS}, {"batch_size": 5}, TypeError, r"data\['x'\].* got float"),
    "masked": (
        np.ma.masked_array(X, X > 0),
        {"batch_size": 5},
        TypeError,
        "data: expected a plain array",
    ),
    "masked leaf": (
        DATA | {"x": np.ma.masked_array(X)},
        {"batch_size": 5},
        TypeError,
        r"data\['x'\]: expected a plain array",
    ),
    "masked batch": (
        [DATA | {"x": np.ma.masked_array(X)}],
        {},
        TypeError,
        r"batch\['x'\]: expected a plain array",
    ),
    "texts": (np.array([["a"] * 3] * 9), {"batch_size": 5}, TypeError, "data: expected numbers, got dtype <U1"),
    "objects": (np.array([[None] * 3] * 9), {"batch_size": 5}, TypeError, "data: expected numbers, got dtype object"),
    "ragged leaves": (
        DATA | {"y": DATA["y"][1:]},
        {"batch_size": 5},
        ValueError,
        r"data\['x'\] \(23, 3\), data\['y'\]",
    ),
    "ragged batch": ([DATA | {"y": DATA["y"][1:]}], {}, ValueError, r"batch\['x'\] \(23, 3\), batch\['y'\] \(22,\)"),
    "batch of one number": ([DATA | {"y": jnp.ones(())}], {}, ValueError, "one common leading batch axis"),
    "an array from a function": (
        lambda: X,
        {},
        TypeError,
        r"data\(\) must return an iterable of batches, got a ndarray",
    ),
    "a dict from a function": (lambda: DATA, {}, TypeError, r"data\(\) must return an iterable of batches, got a dict"),
    "nothing from a function": (lambda: None, {}, TypeError, r"data\(\) must return an iterable .* got a NoneType"),
    "batches and a size": (batches_of(DATA), {"batch_size": 5}, ValueError, "batch_size must be None for an iterable"),
}


@pytest.mark.parametrize(("data", "options", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_data_are_refused_in_one_line(data, options, error, message):
    with pytest.raises(error, match=message) as caught:
        run(data, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_loader_that_runs_dry_is_an_error_with_the_epochs_done():
    class Once:
        batches = batches_of(DATA)

        def __iter__(self):
            yield from self.batches
            self.batches = []

    with pytest.raises(ValueError, match="data yielded no batch in epoch 1") as caught:
        run(Once())
    assert int(caught.value.result.epochs_done) == 1
    assert_identical(run(batches_of(DATA), resume=caught.value.result), run(batches_of(DATA)))


def test_the_kinds_of_data_agree():
    """Without random numbers."""
    one, other = (run(data, shuffle=False, **size) for data, size in (kind(DATA) for kind in KINDS.values()))
    chex.assert_trees_all_close(one, other, rtol=1e-6, atol=1e-7)
