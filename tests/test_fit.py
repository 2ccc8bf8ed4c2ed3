"""Runs of `fit`: callbacks, ends, interruptions, resuming, and compilations."""

import pickle
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paysage_jax import (
    Model,
    Outcome,
    adam,
    chain,
    classic,
    fit,
    loss_gradient,
    reconstruction_error,
    rmsprop,
    sgd,
    skip_nonfinite,
    track_convergence,
)
from tests.helpers.problems import row
from tests.helpers.runs import (
    BATCH,
    DATA,
    IMAGES,
    KEY,
    KINDS,
    MACHINE,
    PARAMS,
    ROWS,
    assert_identical,
    assert_trees_close,
    batches_of,
    compilations,
    each_kind,
    first_weight,
    how,
    python,
    regress,
    regression,
    stopping,
    train,
)

in_memory = KINDS["in memory"]
RUN = dict(epochs=2, batch_size=ROWS, key=KEY)  # one step an epoch: less to compile


# --- the callback ------------------------------------------------------------------------------------


@each_kind
def test_a_callback_gets_the_result_so_far_after_every_measurement_and_changes_nothing(kind):
    seen = []
    assert_identical(regress(kind, callback=seen.append), regress(kind))
    assert [int(result.epochs_done) for result in seen] == list(range(1, 9))
    for result in (seen[0], seen[4]):
        assert_identical(result, regress(kind, epochs=int(result.epochs_done)))


@each_kind
def test_a_callback_is_called_at_measurements_only(kind):
    seen = []
    regress(kind, epochs=7, metrics_every=3, callback=lambda result: seen.append(result.history["epoch"].tolist()))
    assert seen == [[3], [3, 6]]


TRUE = {"True": True, "numpy": np.float32(1) > 0, "jax": jnp.array(True)}


@pytest.mark.parametrize("answer", TRUE.values(), ids=TRUE.keys())
def test_a_callback_stops_the_run_and_resuming_ends_like_an_uninterrupted_run(answer):
    stopped = regress(in_memory, callback=lambda result: answer if result.epochs_done == 3 else None)
    assert how(stopped) == (3, Outcome.STOPPED)
    assert_identical(regress(in_memory, resume=stopped), regress(in_memory))


def test_a_callback_stops_a_run_on_batches():
    kind = KINDS["iterable"]
    stopped = regress(kind, callback=lambda result: result.epochs_done == 3)
    assert how(stopped) == (3, Outcome.STOPPED)
    assert_identical(regress(kind, resume=stopped), regress(kind))


@pytest.mark.parametrize("answer", [None, False, 1, "stop", np.ones(2, bool)[:0], jnp.array(1.0)])
def test_only_true_stops_the_run(answer):
    assert how(regress(in_memory, epochs=2, callback=lambda result: answer)) == (2, Outcome.EPOCHS_EXHAUSTED)


def test_a_run_that_has_ended_by_itself_is_not_called_stopped():
    assert how(regress(in_memory, tolerance=np.inf, callback=lambda result: True)) == (1, Outcome.CONVERGED)


# --- what is compiled --------------------------------------------------------------------------------


@each_kind
def test_a_callback_at_every_epoch_and_a_loop_over_epochs_compile_nothing_more(kind):
    result = regress(kind, epochs=1)
    regress(kind, epochs=2, resume=result)  # what copies a result
    with compilations() as programs:
        whole = regress(kind, epochs=10, callback=lambda result: None)
        for epochs in range(2, 11):
            result = regress(kind, epochs=epochs, resume=result)
    assert not programs
    assert_identical(result, whole)


def test_functions_are_compared_by_identity():
    """As `jax.jit` compares them: the same function compiles once, a new lambda of the same code once more."""

    def run(metric, epochs, resume=None):
        options = RUN | {"epochs": epochs, "metrics": {"value": metric}, "resume": resume}
        return fit(PARAMS, sgd(0.1), regression, DATA, **options)

    def value(state, key):
        return jnp.sum(jnp.ones(3)) * SCALE

    result = run(value, 2, run(value, 1))
    with compilations() as programs:
        for epochs in range(3, 6):
            result = run(value, epochs, result)
        assert not programs
        run(lambda state, key: jnp.sum(jnp.ones(3)) * SCALE, 1)
        assert programs
    assert result.history["value"].tolist() == [3.0] * 5


SCALE = 1.0


def test_a_metric_written_in_the_call_sees_the_values_of_now():
    """The values of a global, and of a NumPy array that was written to."""
    global SCALE
    array = np.ones(2, np.float32)

    def measure(metric):
        result = fit(PARAMS, sgd(0.1), regression, DATA, metrics={"value": metric}, **(RUN | {"epochs": 1}))
        return float(result.history["value"][0])

    for factor in (1.0, 3.0):
        SCALE = factor
        array[:] = factor
        assert measure(lambda state, key: jnp.sum(jnp.ones(2)) * SCALE) == 2 * factor  # noqa: B023
        assert measure(lambda state, key: jnp.sum(array)) == 2 * factor


@each_kind
def test_fit_compiles_once(kind):
    """New learning rates, tolerances, patience, seeds, parameters and data of the same shape do not recompile."""
    first = train(*kind(IMAGES))
    other, key = jax.tree.map(lambda p: p + 1, MACHINE), jax.random.key(1)
    with compilations() as programs:
        second = train(*kind(1 - IMAGES), params=other, key=key, learning_rate=0.2, tolerance=1e-8)
        train(*kind(IMAGES), epochs=5)
        assert not programs
        jax.jit(lambda x: x + 1)(1.0)
        assert programs  # they are counted
    assert first_weight(first, None) != first_weight(second, None)


FIRST_FIT = """
import jax, numpy as np, paysage_jax as pj
from tests.helpers.runs import compilations

jax.config.update("jax_enable_compilation_cache", False)
data, key, machine = np.eye(64, dtype=np.float32), jax.random.key(0), pj.rbm.RBM()
with compilations() as of_init:
    params = machine.init(data, 16, key)
with compilations() as of_fit:
    estimator = pj.persistent_contrastive_divergence(machine, num_chains=32)
    pj.fit(params, pj.sgd(0.1), estimator, data, epochs=1, batch_size=32, key=key)
print(len(of_init), len(of_fit))
"""


@pytest.mark.slow
def test_a_first_fit_compiles_few_programs():
    """Operations of `jax.numpy` outside of a compiled program are programs, which take longer than what they do."""
    of_init, of_fit = map(int, python(FIRST_FIT).split())
    assert 1 <= of_fit <= 6
    assert 1 <= of_init <= 4


def test_epochs_without_end_cost_no_memory():
    """A row for each of 10⁹ epochs would be 20 GB."""
    result = regress(in_memory, epochs=10**9, rate=0.001, early_stopping=stopping(patience=100))
    assert result.outcome == Outcome.NOT_IMPROVING
    assert 300 < int(result.epochs_done) < 10**5
    np.testing.assert_array_equal(result.history["epoch"], np.arange(1, int(result.epochs_done) + 1))


# --- what is left when a run breaks ------------------------------------------------------------------


class Broken(Exception):
    """By a test."""


def raising(result):
    if result.epochs_done == 3:
        raise Broken


def batches_raising(epoch):
    yield from batches_of(DATA)[: 3 if epoch == 3 else None]
    if epoch == 3:
        raise Broken


BREAKS = {
    "callback": (in_memory, {"callback": raising}),
    "callback, batches": (KINDS["iterable"], {"callback": raising}),
    "loader": (lambda data: (batches_raising, {}), {}),
}


@pytest.mark.parametrize(("kind", "options"), BREAKS.values(), ids=BREAKS.keys())
def test_an_exception_carries_the_epochs_done_and_the_run_resumes_from_them(kind, options):
    with pytest.raises(Broken) as caught:
        regress(kind, **options)
    result = caught.value.result
    assert how(result) == (3, Outcome.INTERRUPTED)
    assert "epochs done: 3" in caught.value.__notes__[0]
    whole = KINDS["iterable"] if options == {} else kind
    assert_identical(result._replace(outcome=jnp.int32(0)), regress(whole, epochs=3))
    assert_identical(regress(whole, resume=result), regress(whole))


def test_an_exception_in_the_first_epoch_carries_the_start():
    def batches(epoch):
        yield from batches_of(DATA)[:2]
        raise Broken

    with pytest.raises(Broken) as caught:
        regress(lambda data: (batches, {}))
    result = caught.value.result
    assert how(result) == (0, Outcome.INTERRUPTED)
    assert_identical(regress(KINDS["iterable"], resume=result), regress(KINDS["iterable"]))


# --- divergence --------------------------------------------------------------------------------------


@each_kind
def test_a_run_that_diverges_keeps_its_last_finite_epoch(kind):
    """The gradient of step 17 is NaN, in the fourth epoch of five steps."""
    diverged, good = regress(kind, nan_at=17), regress(kind, epochs=3)
    assert how(diverged) == (3, Outcome.NON_FINITE)
    assert_identical(diverged._replace(outcome=good.outcome), good)
    assert_identical(regress(kind, resume=diverged), regress(kind))


def sweep_of_two():
    return jax.vmap(lambda at: regress(in_memory, nan_at=at))(jnp.array([17, -1]))


def test_one_member_of_a_sweep_diverges():
    sweep = sweep_of_two()
    assert sweep.outcome.tolist() == [Outcome.NON_FINITE, Outcome.EPOCHS_EXHAUSTED]
    assert sweep.epochs_done.tolist() == [3, 8]
    for i, alone in enumerate((regress(in_memory, epochs=3), regress(in_memory))):
        one = row(sweep, i)
        assert_trees_close(one._replace(history=(), outcome=0), alone._replace(history=(), outcome=0), atol=1e-6)
    np.testing.assert_array_equal(sweep.history["epoch"][0], [1, 2, 3, -1, -1, -1, -1, -1])


# --- convergence needs a step ------------------------------------------------------------------------

NAN_DATA = jax.tree.map(lambda x: np.full_like(x, np.nan), DATA)
tracker = track_convergence(1e-3)
SKIPS = {
    "chain(skip_nonfinite)": chain(skip_nonfinite(sgd(0.1)), tracker),
    "skip_nonfinite(chain)": skip_nonfinite(chain(sgd(0.1), tracker)),
    "chain(apply_if_finite)": chain(optax.apply_if_finite(optax.sgd(0.1), 1000), tracker),
    "optax.chain(apply_if_finite)": optax.chain(optax.apply_if_finite(optax.sgd(0.1), 1000), tracker.to_optax()),
}


@pytest.mark.slow_unless("skip_nonfinite(chain)", "chain(apply_if_finite)")
@pytest.mark.parametrize("optimizer", SKIPS.values(), ids=SKIPS.keys())
def test_a_run_whose_steps_are_all_skipped_has_not_converged(optimizer):
    result = fit(PARAMS, optimizer, regression, NAN_DATA, **RUN)
    assert how(result) == (0, Outcome.NON_FINITE)


def test_zero_updates_between_accumulated_ones_do_not_count_as_convergence():
    """Seven gradients make a step and five an epoch, so all epochs but the last of seven end between two steps."""
    optimizer = chain(optax.MultiSteps(optax.sgd(0.1), 7).gradient_transformation(), track_convergence(1e-12))
    with jax.numpy_dtype_promotion("standard"):
        result = fit(PARAMS, optimizer, regression, DATA, epochs=7, batch_size=BATCH, key=KEY)
    assert how(result) == (7, Outcome.EPOCHS_EXHAUSTED)


overflow = loss_gradient(lambda params, batch: 1e20 * jnp.sum(params["w"]) + jnp.sum(params.get("b", jnp.zeros(1))))
OVERFLOW = {"adam": adam, "rmsprop": rmsprop, "classic.adam": classic.adam, "classic.rmsprop": classic.rmsprop}


@pytest.mark.slow_unless("adam", "classic.rmsprop")
@pytest.mark.parametrize("make", OVERFLOW.values(), ids=OVERFLOW.keys())
def test_an_overflowed_moment_does_not_count_as_convergence(make):
    """1e20² overflows float32, so the normalized step is zero: of all leaves, or of one while others move."""
    result = fit(PARAMS, chain(make(1e-4), tracker), overflow, DATA, **RUN)
    assert how(result) == (2, Outcome.EPOCHS_EXHAUSTED)
    assert jnp.any(result.params["b"] != PARAMS["b"])
    chex.assert_trees_all_equal(result.params["w"], PARAMS["w"])
    result = fit({"w": PARAMS["w"]}, chain(make(1e-4), tracker), overflow, DATA, **RUN)
    assert how(result) == (0, Outcome.NON_FINITE)  # nothing moves any more


@pytest.mark.parametrize("size", [1e-30, 1e-46])
def test_a_norm_that_underflows_does_not_count_as_convergence(size):
    """Float32 updates under x64: 1e-30 exceeds the tolerance, though its square does not; 1e-46 underflows float32."""
    with jax.enable_x64(True):
        estimator = loss_gradient(lambda w, batch: jnp.sum(w))
        optimizer = chain(sgd(size), track_convergence(1e-40))
        data = np.ones((5, 1), np.float32)
        result = fit(jnp.zeros(3, jnp.float32), optimizer, estimator, data, epochs=2, batch_size=5, key=KEY)
        assert how(result) == (2, Outcome.EPOCHS_EXHAUSTED)


def test_a_gradient_of_zero_is_convergence():
    estimator = loss_gradient(lambda params, batch: 0 * jnp.sum(params["w"]) + 0 * jnp.sum(params["b"]))
    result = fit(PARAMS, chain(sgd(0.1), tracker), estimator, DATA, **RUN)
    assert how(result) == (1, Outcome.CONVERGED)


# --- resuming ----------------------------------------------------------------------------------------


@each_kind
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(kind):
    """With random numbers in every part, and through a pickle."""
    data, options = kind(IMAGES)
    uncut, first = train(data, options), train(data, options, epochs=3)
    restored = pickle.loads(pickle.dumps(first))
    assert_identical(restored, first)
    for _ in range(2):  # what was resumed from is still there, to be resumed again
        assert_identical(train(data, options, params=None, resume=restored), uncut)
    assert jnp.any(uncut.params["weights"][0]["matrix"] != first.params["weights"][0]["matrix"])


def test_a_converged_run_resumes_only_with_a_tighter_tolerance_or_more_patience():
    """Steps are smaller than 2, and every epoch has five."""
    run = partial(regress, in_memory, tolerance=2.0)
    converged = run(wait=3)
    assert how(converged) == (1, Outcome.CONVERGED)
    for options in (dict(wait=3), dict(wait=2), dict(tolerance=np.inf, wait=3)):
        assert_identical(run(**options, resume=converged), converged)
    assert how(run(wait=12, resume=converged)) == (3, Outcome.CONVERGED)
    assert_identical(run(tolerance=0.0, resume=converged), regress(in_memory))


def test_a_run_that_stopped_improving_resumes_only_with_more_patience():
    run = partial(regress, in_memory)
    gave_up = run(early_stopping=stopping(2, 1e9))
    assert how(gave_up) == (3, Outcome.NOT_IMPROVING)
    for patience in (1, 2):
        assert_identical(run(early_stopping=stopping(patience, 1e9), resume=gave_up), gave_up)
    assert how(run(early_stopping=stopping(4, 1e9), resume=gave_up)) == (5, Outcome.NOT_IMPROVING)
    assert how(run(early_stopping=None, resume=gave_up)) == (8, Outcome.EPOCHS_EXHAUSTED)


def test_a_run_that_has_done_its_epochs_stays_as_it_is():
    def run(epochs, rate, resume=None):
        return fit(PARAMS, sgd(rate), regression, DATA, resume=resume, **(RUN | {"epochs": epochs}))

    done = run(3, 0.1)
    assert_identical(run(3, 0.2, done), done)
    assert_identical(run(2, 0.2, done), done)
    again = jax.vmap(lambda rate: run(2, rate, done))(jnp.array([0.1, 0.2]))
    assert_identical(jax.tree.map(np.asarray, row(again, 1)), jax.tree.map(np.asarray, done))


def test_a_state_of_another_precision_is_named():
    """For float32 parameters whose states follow jax_enable_x64, and for float64 parameters without it."""
    single = fit(PARAMS, sgd(0.1), regression, DATA, **RUN)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, (PARAMS, DATA))
        double = fit(wide[0], sgd(0.1), regression, wide[1], **RUN)
        with pytest.raises(ValueError, match=r"resume.optimizer_state.learning_rate.*float64.*float32.*jax_enable_x64"):
            fit(None, sgd(0.1), regression, DATA, **RUN, resume=single)
    with pytest.raises(ValueError, match=r"resume.params\['b'\] has dtype float64, which needs jax_enable_x64"):
        fit(None, sgd(0.1), regression, DATA, **RUN, resume=double)


# --- under vmap --------------------------------------------------------------------------------------


def test_each_member_of_a_sweep_stops_as_its_own_run_does():
    """Over learning rates and keys; some stop improving, some converge, some do neither."""
    rates, keys = jnp.array([1e-4, 0.03, 0.3, 0.3]), jax.random.split(KEY, 4)

    def run(rate, key):
        stop = stopping(2, 0.05)
        return regress(in_memory, epochs=30, rate=rate, key=key, tolerance=2e-2, wait=2, early_stopping=stop)

    sweep = jax.vmap(run)(rates, keys)
    ends = set()
    for i, (rate, key) in enumerate(zip(rates, keys, strict=True)):
        alone, one = run(rate, key), row(sweep, i)
        assert how(one) == how(alone)
        one = one._replace(history=row(one.history, slice(0, int(alone.epochs_done))))
        assert_trees_close(one, alone)
        ends.add(how(alone))
    assert len(ends) >= 3
    assert len({outcome for _, outcome in ends}) >= 2


@pytest.mark.slow
def test_a_run_is_the_same_inside_a_compiled_program():
    keys = jax.random.split(KEY, 2)
    run = partial(regress, in_memory, epochs=3)
    assert_trees_close(jax.jit(lambda key: run(key=key))(KEY), run(key=KEY))
    mapped = jax.vmap(lambda key: run(key=key))
    assert_trees_close(jax.jit(mapped)(keys), mapped(keys))


def test_everything_that_is_a_number_may_be_mapped():
    run = partial(fit, PARAMS, sgd(0.1), regression, DATA, batch_size=ROWS, key=KEY)

    def epochs(patience, improvement):
        return run(epochs=8, early_stopping=stopping(patience, improvement)).epochs_done

    def validation(v):
        metric = reconstruction_error(Model(lambda params, v: jnp.zeros(len(v)), lambda params, v, key: 0 * v), v)
        return run(epochs=2, metrics={"error": metric}).history["error"]

    assert jax.vmap(epochs)(jnp.array([1, 4, 2]), jnp.array([1e9, 1e9, 0.0])).tolist() == [2, 5, 8]
    errors = jax.vmap(validation)(jnp.stack([jnp.ones((4, 3)), 2 * jnp.ones((4, 3))]))
    np.testing.assert_allclose(errors[1], 4 * errors[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (in_memory, {"callback": print}, "callback"),
        (in_memory, {"progress": True}, "progress"),
        (in_memory, {"checkpoints": "never made"}, "checkpoints"),
        (KINDS["iterable"], {}, "data that is an iterable"),
    ],
)
def test_host_arguments_are_rejected_under_vmap(kind, options, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"fit: {name}: not available under"):
        jax.vmap(lambda rate: regress(kind, rate=rate, **options))(jnp.ones(2))


# --- JAX_DEBUG_NANS and JAX_DEBUG_INFS ---------------------------------------------------------------


def test_a_run_under_debugging_of_nans_and_infinities_is_the_same():
    for run in (
        lambda: regress(in_memory, early_stopping=stopping(2)),
        lambda: regress(KINDS["iterable"], early_stopping=stopping(2)),
        lambda: jax.vmap(lambda rate: fit(PARAMS, sgd(rate), regression, DATA, **RUN).params)(jnp.array([0.1, 0.2])),
    ):
        plain = run()
        with jax.debug_nans(True), jax.debug_infs(True):
            chex.assert_trees_all_equal(run(), plain)


# --- progress ----------------------------------------------------------------------------------------


@each_kind
def test_a_progress_bar_shows_the_latest_metrics_and_changes_nothing(kind, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # else the bar is not drawn
    plain = regress(kind)
    assert capsys.readouterr().err == ""
    assert_identical(regress(kind, progress=True), plain)
    shown = capsys.readouterr().err
    assert "8/8" in shown
    for name in ("loss", "learning_rate", "largest"):
        assert f"{name}={float(plain.history[name][-1]):.4g}" in shown


def test_a_progress_bar_ends_with_the_run(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    result = regress(in_memory, tolerance=np.inf, progress=True)
    assert result.outcome == Outcome.CONVERGED
    assert "1/8" in capsys.readouterr().err


# --- what belongs to the caller ----------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])
def test_no_argument_is_modified_or_deleted(kind, array):
    params, rows = jax.tree.map(array, (PARAMS, DATA))
    data, options = kind(rows)
    result = fit(params, adam(0.1), regression, data, epochs=2, key=KEY, **options)
    before = jax.tree.map(np.array, result)
    fit(None, adam(0.1), regression, data, epochs=3, key=KEY, resume=result, **options)
    chex.assert_trees_all_equal((params, rows, result), (PARAMS, DATA, before))


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(epochs=0), ValueError, "epochs must be a positive integer"),
        (dict(epochs=1.5), TypeError, "epochs must be a positive integer"),
        (dict(metrics_every=0), ValueError, "metrics_every must be a positive integer"),
        (dict(key=3), TypeError, r"key must be a key, jax.random.key\(3\)"),
        (dict(key=np.int64(3)), TypeError, r"key must be a key, jax.random.key\(0\), got .*3"),
        (dict(key=None), TypeError, r"key must be a key, jax.random.key\(0\), got None"),
        (dict(shuffle=jnp.array(True)), TypeError, "shuffle must be True or False"),
        (dict(early_stopping="loss"), TypeError, "early_stopping must be early_stopping"),
        (dict(callback=1), TypeError, r"callback must be a function callback\(result\), got 1"),
        (dict(resume={"params": PARAMS}), TypeError, "resume must be the FitResult of an earlier call, got dict"),
        (dict(batch_size=None), ValueError, "batch_size must be from 1 to the 23 rows of data, got None"),
        (dict(batch_size=24), ValueError, "batch_size must be from 1 to the 23 rows of data, got 24"),
        (dict(batch_size=0), ValueError, r"batch_size must be .*, got 0"),
        (dict(batch_size=5.0), ValueError, "batch_size must be"),
        (dict(batch_size="5"), ValueError, "batch_size must be .*, got '5'"),
    ],
)
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message):
        fit(PARAMS, sgd(0.1), regression, DATA, **(RUN | change))


def test_an_optimizer_that_is_none_is_an_error():
    with pytest.raises(TypeError, match="expected an optimizer or transformation"):
        fit(PARAMS, None, regression, DATA, **RUN)


class Plain:
    """An optimizer, or an estimator, that was not made a pytree."""

    def init(self, params, *rest):
        return ()

    def update(self, updates, state, params=None, **extra):
        return updates, state

    def estimate(self, params, batch, estimator_state, key):
        return params, estimator_state, None


def test_an_estimator_that_is_not_a_pytree_is_named():
    with pytest.raises(TypeError, match=r"Plain.*static"):
        fit(PARAMS, sgd(0.1), Plain(), DATA, **RUN)
