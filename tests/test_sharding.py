"""Runs on many devices equal the run on one: sharded data, chains and optimizer states."""

import contextlib
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, auto_axes
from jax.sharding import PartitionSpec as P

import paysage_jax as pj
from paysage_jax import rbm
from paysage_jax._train.placement import Placement
from tests.helpers.runs import compilations

CPUS = jax.devices("cpu")
KEY = jax.random.key(0)
SHARDS, BATCH, EPOCHS = 8, 16, 8  # 64 steps
IMAGES = (np.random.default_rng(0).random((128, 24)) < 0.4).astype(np.float32)
MODEL = rbm.RBM()
PARAMS = MODEL.init(IMAGES, 16, jax.random.key(1))
PCD = pj.persistent_contrastive_divergence(MODEL)
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")

needs_8_cpus = pytest.mark.skipif(len(CPUS) < 8, reason="eight virtual devices of the CPU are needed")
pytestmark = needs_8_cpus


@pytest.fixture(autouse=True)
def one_of_them_by_default():
    """One device and many devices are of the same kind, also on a machine with a GPU."""
    with jax.default_device(CPUS[0]):
        yield


def over(devices, kind=AxisType.Auto, model=1):
    """Rows over the axis "data" of a mesh; the other devices form the axis "model"."""
    shape, names = ((devices // model, model), ("data", "model")) if model > 1 else ((devices,), ("data",))
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=CPUS[:devices])
    return NamedSharding(mesh, P("data"))


LAYOUTS = {
    "8": partial(over, 8),
    "8 explicit": partial(over, 8, AxisType.Explicit),
    "4 x 2": partial(over, 8, model=2),
    "4 x 2 explicit": partial(over, 8, AxisType.Explicit, model=2),
}


def pieces(make):
    """The optimizer, with a sharded state if there are devices."""
    return lambda sharding: make() if sharding is None else pj.shard_state(make(), sharding)


OPTIMIZERS = {
    "adam": lambda sharding: pj.adam(0.01),
    "centred and averaged": lambda sharding: pj.chain(pj.center(), pj.sgd(0.1), pj.average_parameters(0.9)),
    "sharded adam": pieces(lambda: pj.adam(0.01)),
    "sharded packed": pieces(lambda: pj.packing.pack_moments(pj.adam(0.01))),
    "sharded chain": pieces(lambda: pj.chain(pj.clip_by_global_norm(1.0), pj.momentum(0.01))),
}


def train(sharding, optimizer, loader=False, images=IMAGES, **options):
    """A run, with W sharded over the axis "model" if there is one."""
    params, model, context = PARAMS, MODEL, contextlib.nullcontext()
    if sharding is not None:
        options = {"sharding": sharding} | options
        if "model" in sharding.mesh.axis_names:
            columns = NamedSharding(sharding.mesh, P(None, "model"))
            params = params | {"weights": [{"matrix": jax.device_put(params["weights"][0]["matrix"], columns)}]}
            if AxisType.Explicit in sharding.mesh.axis_types:
                # With explicit axes, the author of a sum over a sharded axis has to choose the sharding of the result.
                gibbs = auto_axes(MODEL.transition, out_sharding=P("data", None))
                context, model = jax.set_mesh(sharding.mesh), pj.Model(MODEL.energy, gibbs)
    if loader:
        data = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    else:
        data, options = images, {"batch_size": BATCH, "shards": SHARDS} | options
    estimator = pj.persistent_contrastive_divergence(model)
    with context:
        return pj.fit(params, optimizer(sharding), estimator, data, **({"epochs": EPOCHS, "key": KEY} | options))


@cache
def on_one_device(optimizer, loader):
    return train(None, OPTIMIZERS[optimizer], loader)


def assert_same_run(actual, expected):
    """Parameters up to rounding, chains bit for bit."""
    a, e = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(run.params)]) for run in (actual, expected))
    assert np.linalg.norm(a - e) <= 1e-5 * np.linalg.norm(e)
    chex.assert_trees_all_equal(*(np.asarray(run.estimator_state) for run in (actual, expected)))


slow = partial(pytest.param, marks=pytest.mark.slow)
# Every layout with Adam, every optimizer with a layout, some of them from a loader.
CASES = [
    ("adam", "8", False),
    slow("adam", "8 explicit", True),
    slow("adam", "4 x 2", True),
    slow("adam", "4 x 2 explicit", False),
    slow("centred and averaged", "8 explicit", False),
    ("centred and averaged", "4 x 2", True),
    slow("sharded adam", "8", True),
    ("sharded adam", "4 x 2 explicit", False),
    slow("sharded packed", "8 explicit", False),
    slow("sharded packed", "4 x 2", False),
    slow("sharded chain", "8", False),
]


@pytest.mark.slow_unless("adam-8-False")
@pytest.mark.parametrize(("optimizer", "layout", "loader"), CASES)
def test_many_devices_are_one(optimizer, layout, loader):
    result = train(LAYOUTS[layout](), OPTIMIZERS[optimizer], loader)
    assert_same_run(result, on_one_device(optimizer, loader))
    assert result.estimator_state.sharding.spec[0] == "data"
    assert jax.tree.leaves(result.params)[0].sharding.is_fully_replicated
    if "model" in LAYOUTS[layout]().mesh.axis_names:
        assert result.params["weights"][0]["matrix"].sharding.spec == P(None, "model")


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "loader"), [(131, False), slow(123, True)])
def test_rows_and_chains_that_do_not_divide(rows, loader):
    """The last batch is smaller; weights follow their rows; ten chains are replicated on each device."""
    images = np.resize(IMAGES, (rows, 24))
    weights = np.linspace(1, 2, rows, dtype=np.float32)
    estimator = pj.persistent_contrastive_divergence(MODEL, num_chains=10)
    ends = range(0, rows, BATCH)
    data = [pj.Weighted(images[i : i + BATCH], weights[i : i + BATCH]) for i in ends] if loader else None
    options = {} if loader else {"batch_size": BATCH, "shards": SHARDS}
    data = data or pj.Weighted(images, weights)
    run = partial(pj.fit, PARAMS, pj.adam(0.01), estimator, data, epochs=3, key=KEY, **options)
    assert_same_run(run(sharding=over(8)), run())


@settings(max_examples=8)
@given(rows=st.integers(1, 60), shards=st.integers(1, 8), each=st.integers(1, 8), shuffle=st.booleans())
def test_an_epoch_takes_each_row_once(rows, shards, each, shuffle):
    """For any number of shards; and every batch has equally many rows of each."""
    placement = Placement(shards=shards)
    size, data = rows // shards, np.arange(rows)
    order = np.asarray(placement.order(KEY, rows, shuffle))
    full = size // each
    whole = [placement.take(data, order[:, i * each : (i + 1) * each]) for i in range(full)]
    for batch in whole:
        np.testing.assert_array_equal(np.bincount(np.asarray(batch) // max(size, 1), minlength=shards), each)
    rest = placement.take(data, order[:, full * each :], with_remainder=True)
    assert sorted(np.concatenate([*whole, rest]).tolist()) == list(range(rows))


# --- what is computed, held and sent -----------------------------------------------------------------


@cache
def program(sharding, name):
    """A step compiled with the shardings of a run of one epoch, and the run."""
    images = np.resize(IMAGES, (400, 96))
    params = MODEL.init(images, 64, KEY)
    options = {"epochs": 1, "key": KEY, "batch_size": 400, "shards": 8, "sharding": sharding}
    run = pj.fit(params, OPTIMIZERS[name](sharding), PCD, images, **options)
    step = pj.train_step(PCD, OPTIMIZERS[name](sharding))
    whole = sharding and NamedSharding(sharding.mesh, P())
    batch = jax.ShapeDtypeStruct((400, 96), np.float32, sharding=sharding)
    key = jax.ShapeDtypeStruct((), KEY.dtype, sharding=whole)
    return run, jax.jit(step).lower(run.state, batch, key).compile()


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), [("8", "sharded adam"), slow("8 explicit", "adam")])
def test_an_eighth_of_the_work_on_each_of_eight_devices(layout, name):
    flops = [program(sharding, name)[1].cost_analysis()["flops"] for sharding in (None, LAYOUTS[layout]())]
    assert flops[1] <= flops[0] / 7.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded adam", slow("sharded packed")])
def test_an_eighth_of_the_state_on_each_of_eight_devices(name):
    leaves = jax.tree.leaves(program(over(8), name)[0].optimizer_state)
    assert sum(x.addressable_shards[0].data.nbytes for x in leaves) <= sum(x.nbytes for x in leaves) / 7.5


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["8", slow("8 explicit")])
def test_data_and_chains_stay_where_they_are(layout):
    """Only sums are communicated between devices, and with a sharded state also the updates."""
    text = program(LAYOUTS[layout](), "adam")[1].as_text()
    assert "all-reduce(" in text
    assert not [name for name in COLLECTIVES if f" {name}(" in text]
    lines = program(LAYOUTS[layout](), "sharded adam")[1].as_text().splitlines()
    gathered = [line for line in lines if " all-gather(" in line]
    assert gathered
    assert not [line for line in gathered if "[400,96]" in line]


def test_a_whole_run_gathers_no_rows(monkeypatch):
    """Also the program of the epochs, which takes batches from the shards."""
    texts = []

    def compiled(*arguments, **static):
        texts.append(run_epochs.lower(*arguments, **static).compile().as_text())
        return run_epochs(*arguments, **static)

    run_epochs = pj._train.source.run_epochs
    monkeypatch.setattr(pj._train.source, "run_epochs", compiled)
    train(over(8), OPTIMIZERS["adam"], epochs=1)
    assert "all-reduce(" in texts[0]
    assert not [name for name in COLLECTIVES if f" {name}(" in texts[0]]


def test_nothing_compiles_again():
    run = partial(train, over(8), OPTIMIZERS["sharded adam"])
    first = run(epochs=3, resume=run(epochs=2))  # what copies a result
    with compilations() as programs:
        for epochs in (4, 5, 6):
            first = run(epochs=epochs, resume=first)
    assert not programs


# --- from one layout to another ----------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after", "on_disk"), [slow(8, 1, True), slow(8, 4, False), (1, 8, False)])
def test_a_run_resumes_on_other_devices(before, after, on_disk, tmp_path):
    name = "sharded packed"
    folder = {"checkpoints": tmp_path / "run"} if on_disk else {}
    half = train(over(before), OPTIMIZERS[name], epochs=4, **folder)
    rest = folder or {"resume": half}
    result = train(over(after), OPTIMIZERS[name], **rest)
    assert_same_run(result, on_one_device("adam", False))
    assert len(result.estimator_state.sharding.device_set) == after
    assert int(result.epochs_done) == EPOCHS


@pytest.mark.slow
def test_a_run_without_sharding_resumes_with_sharding(tmp_path):
    """And the reverse: the sharded state equals the state of the optimizer itself."""
    for sharding, epochs in ((None, 3), (over(8), 6), (None, EPOCHS)):
        result = train(sharding, OPTIMIZERS["sharded adam"], epochs=epochs, checkpoints=tmp_path / "run")
    assert_same_run(result, on_one_device("adam", False))


@pytest.mark.slow
def test_metrics_stopping_and_progress_work_with_sharding():
    seen = []
    options = {
        "metrics": {"pseudo": pj.pseudo_log_likelihood(MODEL, IMAGES[:20])},
        "early_stopping": pj.early_stopping("pseudo", patience=2, maximize=True),
        "callback": lambda result: seen.append(int(result.epochs_done)),
        "progress": True,
        "epochs": 30,
    }
    many, one = (train(sharding, OPTIMIZERS["adam"], **options) for sharding in (over(8), None))
    assert pj.Outcome(many.outcome) == pj.Outcome(one.outcome)
    chex.assert_trees_all_close(dict(many.history), dict(one.history), rtol=1e-4)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :] == many.history["epoch"].tolist()


# --- the sharded state of an optimizer ---------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "pieces" in name])
def test_pieces_in_a_loop_of_ones_own(name):
    """Parameters stay replicated, and the numbers equal those of the optimizer alone."""
    sharding = over(8)
    alone, split = OPTIMIZERS[name](None), OPTIMIZERS[name](sharding)
    params = jax.device_put(PARAMS, NamedSharding(sharding.mesh, P()))

    @jax.jit
    def steps(optimizer, params, state):
        def step(carry, i):
            params, state = carry
            updates, state = optimizer.update(jax.tree.map(lambda x: jnp.cos(x + i), PARAMS), state, params)
            return (pj.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jnp.arange(5.0))[0]

    expected, _ = steps(alone, PARAMS, alone.init(PARAMS))
    actual, state = steps(split, params, split.init(params))
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), rtol=1e-5, atol=1e-8)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(actual))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


def test_a_sharded_state_is_read_like_any_other():
    plain = pj.chain(pj.adam(0.1), pj.average_parameters(0.5), pj.track_convergence(1e-3))
    states = []
    for optimizer in (plain, pj.shard_state(plain, over(8))):
        state = optimizer.init(PARAMS)
        states.append(jax.jit(optimizer.update)(PARAMS, state, PARAMS)[1])
    # By the norm of a leaf: an element where a parameter and its update nearly cancel may be off by more.
    for whole, spread in zip(*(jax.tree.leaves(pj.averaged_parameters(state)) for state in states), strict=True):
        assert np.linalg.norm(spread - whole) <= 1e-6 * np.linalg.norm(whole)
    assert bool(pj.converged(states[0])) == bool(pj.converged(states[1]))


# --- mistakes ----------------------------------------------------------------------------------------


def test_mistakes_are_named():
    run = partial(pj.fit, PARAMS, pj.adam(0.1), PCD, IMAGES, epochs=1, key=KEY)
    with pytest.raises(TypeError, match=r"sharding must be NamedSharding\(mesh"):
        run(sharding=over(8).mesh, batch_size=BATCH)
    for spec in (P(), P(None), P(None, "data")):
        with pytest.raises(ValueError, match="sharding must shard the leading axis and no other axis"):
            run(sharding=NamedSharding(over(8).mesh, spec), batch_size=BATCH)
    with pytest.raises(ValueError, match="shards must be a multiple of the 8 shards of sharding, got 4"):
        run(sharding=over(8), shards=4, batch_size=BATCH)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 8 shards, got 20"):
        run(sharding=over(8), batch_size=20)
    with pytest.raises(ValueError, match="the rows of a batch must divide over the 8 devices, got 12 rows"):
        pj.fit(PARAMS, pj.adam(0.1), PCD, [IMAGES[:12]], epochs=1, key=KEY, sharding=over(8))
    with pytest.raises(TypeError, match="shard_state: sharding must be NamedSharding"):
        pj.shard_state(pj.adam(0.1), P("data"))


def test_sharded_rows_without_sharding_are_rejected():
    images = jax.device_put(IMAGES, over(8))
    for data, options in ((images, {"batch_size": BATCH}), ([images], {})):
        with pytest.raises(ValueError, match=r"fit: data.* is sharded over 8 devices, .*; pass sharding= as well"):
            pj.fit(PARAMS, pj.adam(0.1), PCD, data, epochs=1, key=KEY, **options)
    assert_same_run(train(over(8), OPTIMIZERS["adam"], images=images), on_one_device("adam", False))


def test_parameters_on_another_mesh_are_refused():
    other = over(8, model=2).mesh
    params = PARAMS | {"weights": [jax.device_put(PARAMS["weights"][0], NamedSharding(other, P(None, "model")))]}
    with pytest.raises(ValueError, match=r"params\['weights'\]\[0\]\['matrix'\] is on Mesh.*use one mesh"):
        pj.fit(params, pj.adam(0.1), PCD, IMAGES, epochs=1, key=KEY, batch_size=BATCH, sharding=over(8))


def test_a_checkpoint_of_other_shards_is_refused(tmp_path):
    train(None, OPTIMIZERS["adam"], epochs=1, checkpoints=tmp_path / "run")
    with pytest.raises(ValueError, match="was written with shards=8, not 1"):
        train(None, OPTIMIZERS["adam"], shards=1, epochs=2, checkpoints=tmp_path / "run")


@pytest.mark.slow
def test_a_sharded_model_stays_sharded_when_resumed_and_in_best():
    sharding = over(8, model=2)
    half = train(sharding, OPTIMIZERS["adam"], epochs=3, early_stopping=pj.early_stopping("data_energy", patience=99))
    result = pj.fit(
        PARAMS, pj.adam(0.01), PCD, IMAGES, epochs=4, key=KEY, batch_size=BATCH, shards=SHARDS, sharding=sharding,
        resume=half, early_stopping=pj.early_stopping("data_energy", patience=99),
    )  # fmt: skip
    for params in (result.params, result.best.params, half.best.params):
        assert params["weights"][0]["matrix"].sharding.spec == P(None, "model")


@pytest.mark.slow
def test_a_run_resumes_with_its_number_of_chains():
    ten = pj.persistent_contrastive_divergence(MODEL, num_chains=10)
    run = partial(pj.fit, PARAMS, pj.adam(0.01), data=IMAGES, key=KEY, batch_size=BATCH, shards=SHARDS)
    expected, actual = (run(estimator=PCD, epochs=2, resume=run(estimator=ten, epochs=1, **kw), **kw)
                        for kw in ({}, {"sharding": over(8)}))  # fmt: skip
    assert_same_run(actual, expected)


def test_another_optimizers_state_is_refused():
    half = train(over(8), OPTIMIZERS["adam"], epochs=1)
    with pytest.raises(ValueError, match=r"fit: resume\.optimizer_state"):
        train(over(8), lambda sharding: pj.sgd(0.1), resume=half)


def test_pieces_on_another_mesh_or_without_one_are_refused():
    run = partial(pj.fit, PARAMS, estimator=PCD, data=IMAGES, epochs=1, key=KEY, batch_size=BATCH)
    with pytest.raises(ValueError, match=r"the optimizer's state\.mean.* is on Mesh.*use one mesh"):
        run(pj.shard_state(pj.adam(0.1), over(4)), sharding=over(8))
    with pytest.raises(
        ValueError, match=r"the optimizer's state\.mean.* is sharded over 8 devices, .*; pass sharding="
    ):
        run(pj.shard_state(pj.adam(0.1), over(8)))
    with pytest.raises(ValueError, match="fit: sharding: not available under"):
        jax.jit(lambda key: run(pj.adam(0.1), key=key, sharding=over(8)))(KEY)


def test_a_longest_axis_that_is_already_sharded_is_rejected():
    sharding = over(8, model=2)
    rows = jax.device_put(jnp.zeros((16, 8)), NamedSharding(sharding.mesh, P("model")))
    with pytest.raises(
        ValueError, match=r"shard_state: state\.mean.* is already sharded over 'model' along its longest axis"
    ):
        pj.shard_state(pj.adam(0.1), sharding).init({"w": rows})
    columns = jax.device_put(jnp.zeros((16, 8)), NamedSharding(sharding.mesh, P(None, "model")))
    assert pj.shard_state(pj.adam(0.1), sharding).init(columns).mean.sharding.spec == P("data", "model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", slow("Explicit")])
def test_a_metric_may_have_a_row_for_each_chain(kind):
    metrics = {"chains": lambda state, key: MODEL.energy(state.params, state.estimator_state)}
    run = train(over(8, AxisType[kind]), OPTIMIZERS["adam"], metrics=metrics, epochs=2)
    assert run.history["chains"].shape == (2, BATCH)


@pytest.mark.slow
def test_gaussian_units_are_drawn_where_their_rows_are():
    flops, machine = [], rbm.RBM(visible=rbm.Gaussian())
    params = machine.init(np.random.default_rng(0).normal(size=(400, 96)).astype(np.float32), 64, KEY)
    for sharding in (None, over(8), over(8, AxisType.Explicit)):
        whole = sharding and NamedSharding(sharding.mesh, P())
        v = jax.ShapeDtypeStruct((400, 96), np.float32, sharding=sharding)
        key = jax.ShapeDtypeStruct((), KEY.dtype, sharding=whole)
        shapes = jax.tree.map(lambda x, w=whole: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=w), params)
        flops.append(jax.jit(machine.transition).lower(shapes, v, key).compile().cost_analysis()["flops"])
    assert max(flops[1:]) <= flops[0] / 7.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, slow(AxisType.Explicit)])
def test_log_z_from_sharded_chains_equals_that_of_one_device(kind):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (rng.normal(size=x.shape) / 2).astype(x.dtype), PARAMS)
    here = jax.jit(MODEL.annealing, static_argnums=2)(params, IMAGES, 64, KEY)
    pieces = over(8, kind)
    whole = NamedSharding(pieces.mesh, P())
    there = jax.device_put(here, whole)._replace(start=jax.device_put(here.start, pieces))
    for estimate in (
        lambda annealing, key: pj.annealed_importance_sampling(MODEL, annealing, key, steps=20),
        lambda annealing, key: pj.reverse_ais_log_prob(MODEL, annealing, annealing.start, key, steps=20),
    ):  # in reverse it is the same program
        actual = estimate(there, jax.device_put(KEY, whole))
        chex.assert_trees_all_close(actual, estimate(here, KEY), rtol=1e-5, atol=1e-4)
