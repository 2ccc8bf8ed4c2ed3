"""The classes of 2017: the documented interface, the golden numbers, the array types and the fixed defects."""

import builtins
import copy
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paysage_jax
from paysage_jax import classic, optimizers
from tests.helpers.golden import tree_at
from tests.helpers.problems import (
    GOLDEN,
    MANIFEST,
    assert_golden,
    assert_golden_deltas,
    assert_golden_magnitude,
    assert_golden_parameters,
    each_golden,
    golden,
    golden_magnitude_tree,
    rbm_tree,
    row,
    scaled,
)

CLASSES = ["StochasticGradientDescent", "Momentum", "RMSProp", "ADAM"]
each_class = pytest.mark.parametrize("cls", [getattr(optimizers, name) for name in CLASSES])
each_kind = pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])


class Model:
    """The interface of a model that the optimizers use. Here the "data" are the gradient."""

    def __init__(self, params=None):
        self.params = params

    def gradient(self, v_data, v_model):
        return v_data

    def parameter_update(self, delta):
        self.delta = delta
        if self.params:
            self.params = jax.tree.map(lambda p, d: p - d, self.params, delta)


def gradient(seed=1, array=np.array, dtype=np.float32, visible=4):
    return jax.tree.map(lambda x: array(x, dtype), rbm_tree(visible, seed=seed))


def updated(optimizer, *gradients, epoch=0):
    for g in gradients:
        optimizer.update(Model(), g, None, epoch)
    return optimizer


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


# --- the documented interface ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "documented",
    [
        "Scheduler()",
        "Scheduler.increment(self, epoch)",
        "PowerLawDecay(lr_decay=0.1)",
        "PowerLawDecay.increment(self, epoch)",
        "PowerLawDecay.get_lr(self)",
        "ExponentialDecay(lr_decay=0.9)",
        "ExponentialDecay.increment(self, epoch)",
        "ExponentialDecay.get_lr(self)",
        "GradientMemory(mean_weight=0.9, mean_square_weight=0.0)",
        "GradientMemory.update(self, grad)",
        "GradientMemory.update_mean(self, grad)",
        "GradientMemory.update_mean_square(self, grad)",
        "GradientMemory.normalize(self, grad, unbiased=False)",
        "Optimizer(scheduler=PowerLawDecay(), tolerance=0.001)",
        "Optimizer.check_convergence(self)",
        "StochasticGradientDescent(model, stepsize=0.001, scheduler=PowerLawDecay(), tolerance=0.001)",
        "Momentum(model, stepsize=0.001, momentum=0.9, scheduler=PowerLawDecay(), tolerance=1e-06)",
        "RMSProp(model, stepsize=0.001, mean_square_weight=0.9, scheduler=PowerLawDecay(), tolerance=1e-06)",
        "ADAM(model, stepsize=0.001, mean_weight=0.9, mean_square_weight=0.999, scheduler=PowerLawDecay(), "
        "tolerance=1e-06)",
        *(f"{name}.update(self, model, v_data, v_model, epoch)" for name in CLASSES),
        *(f"{name}.check_convergence(self)" for name in CLASSES),
        "gradient_magnitude(grad)",
    ],
)
def test_signature_is_the_documented_one(documented):
    def described(function):
        # A scheduler is compared by its type and numbers.
        return [
            (p.name, p.kind, (type(p.default), vars(p.default)) if hasattr(p.default, "get_lr") else p.default)
            for p in inspect.signature(function).parameters.values()
        ]

    path, arguments = documented.removesuffix(")").split("(", 1)
    actual = optimizers
    for name in path.split("."):
        actual = getattr(actual, name)
    assert described(actual) == described(eval(f"lambda {arguments}: None", vars(optimizers)))


def test_names_of_the_original_module():
    assert optimizers.sgd is optimizers.SGD is optimizers.StochasticGradientDescent
    assert optimizers.momentum is optimizers.Momentum
    assert optimizers.rmsprop is optimizers.RMSProp
    assert optimizers.adam is optimizers.ADAM
    assert optimizers.deepcopy is copy.deepcopy
    assert inspect.signature(optimizers.gradient_magnitude).return_annotation is float
    for name in [*CLASSES, "Scheduler", "PowerLawDecay", "ExponentialDecay", "GradientMemory", "Optimizer"]:
        assert getattr(paysage_jax, name) is getattr(optimizers, name)


# --- the golden numbers ------------------------------------------------------------------------------


def make_scheduler(described):
    return getattr(optimizers, described["class"])(described["lr_decay"])


def make_optimizer(case):
    scheduler = case["scheduler"]
    given = {} if scheduler.get("is_default") else {"scheduler": make_scheduler(scheduler)}
    tolerance = {} if case["tolerance_is_default"] else {"tolerance": case["tolerance"]}
    return getattr(optimizers, case["optimizer"])(None, **case["kwargs"], **given, **tolerance)


# NumPy replays every recording, and so does JAX in test_classic; here JAX replays one of each optimizer and schedule.
FIRST = {(case["optimizer"], case["scheduler"]["class"]): case["id"] for case in reversed(MANIFEST["cases"])}
REPLAYED = [pytest.param(case, np.array, id=f"{case['id']}-numpy") for case in MANIFEST["cases"]] + [
    pytest.param(case, jnp.array, id=f"{case['id']}-jax", marks=[pytest.mark.slow] * (case["id"] not in FIRST.values()))
    for case in MANIFEST["cases"]
]


@pytest.mark.parametrize(("case", "array"), REPLAYED)
def test_golden_run(case, array):
    group, name = case["group"], case["id"]
    recorded = {what: GOLDEN[group][f"{name}/{what}"] for what in ("epoch", "sched_lr", "sched_iter", "magnitude")}
    flags = {what: GOLDEN[group][f"{name}/{what}"] for what in ("converged", "converged_default_tol")}
    grads, deltas = golden(group, name, "grad"), golden(group, name, "delta")
    handed = [jax.tree.map(array, row(grads, t)) for t in range(case["steps"])]
    model, optimizer = Model(jax.tree.map(array, row(golden(group, name, "param"), 0))), make_optimizer(case)

    made, params = [], [model.params]
    for t, epoch in enumerate(recorded["epoch"]):
        optimizer.update(model, handed[t], None, int(epoch))
        assert optimizer.delta is model.delta
        made.append(optimizer.delta)
        params.append(model.params)
        assert optimizer.scheduler.lr == recorded["sched_lr"][t]
        assert optimizer.scheduler.iter == recorded["sched_iter"][t]
        assert optimizer.check_convergence() is bool(flags["converged"][t])
        default = copy.copy(optimizer)
        default.tolerance = case["default_tolerance"]
        assert default.check_convergence() is bool(flags["converged_default_tol"][t])
        magnitude = optimizers.gradient_magnitude(optimizer.delta)
        assert_golden_magnitude(magnitude, recorded["magnitude"][t], row(deltas, t))

    assert_golden_deltas(stack(made), case)
    assert_golden_parameters(stack(params), case)
    chex.assert_trees_all_equal(stack(handed), grads)  # the model's own gradients, bit for bit


@each_kind
@each_golden("memory")
def test_golden_memory(case, array):
    name = case["id"]
    memory = optimizers.GradientMemory(case["mean_weight"], case["mean_square_weight"])
    recorded = {key.split("/")[1] for key in GOLDEN["memory"].files if key.startswith(f"{name}/")} - {"grad"}
    outputs = {what: [] for what in recorded}
    for t in range(case["steps"]):
        grad = jax.tree.map(array, tree_at(GOLDEN["memory"], name, "grad", t))
        if name.startswith("direct"):
            memory.update_mean(grad)
            memory.update_mean_square(grad)
        else:
            memory.update(grad)
        for what in recorded:
            if what.startswith("norm_"):
                _, of, form = what.split("_")
                made = memory.normalize({"grad": grad, "mean": memory.mean_gradient}[of], unbiased=form == "unbiased")
            else:
                made = getattr(memory, f"{what}_gradient")
            outputs[what].append(made)
        chex.assert_trees_all_equal(stack([grad]), stack([tree_at(GOLDEN["memory"], name, "grad", t)]))
    assert {"mean", "mean_square"} & recorded
    assert (memory.mean_gradient is None) == ("mean" not in recorded)
    assert (memory.mean_square_gradient is None) == ("mean_square" not in recorded)
    for what in recorded:
        assert_golden(stack(outputs[what]), golden("memory", name, what), 5e-6)


@each_golden("magnitude")
def test_golden_magnitude(case):
    tree = golden_magnitude_tree(case)
    if case["raises"]:
        with pytest.raises(getattr(builtins, case["raises"])):
            optimizers.gradient_magnitude(tree)
    else:
        assert_golden_magnitude(optimizers.gradient_magnitude(tree), float(case["value_text"]), tree)


@each_golden("schedulers")
def test_golden_scheduler(case):
    scheduler = make_scheduler({"class": case["cls"], "lr_decay": case["lr_decay"]})
    assert {name: getattr(scheduler, name) for name in case["fresh"]} == case["fresh"]
    assert scheduler.get_lr() == case["lr_before_increment"]
    npz, name = GOLDEN["schedulers"], case["id"]
    for epoch, lr, iteration in zip(npz[f"{name}/epoch"], npz[f"{name}/lr"], npz[f"{name}/iter"], strict=True):
        scheduler.increment(int(epoch))
        assert scheduler.get_lr() == scheduler.lr == lr
        assert (scheduler.iter, scheduler.epoch) == (iteration, epoch)


def rbm_gradient(params, v_data, v_model):
    """The gradient of a Bernoulli RBM in float64, rounded to float32."""

    def phase(v):
        hidden = 1 / (1 + np.exp(-(v @ np.float64(params["weights"][0]["matrix"]) + params["layers"][1]["loc"])))
        layers = [{"loc": v.mean(0)}, {"loc": hidden.mean(0)}]
        return {"layers": layers, "weights": [{"matrix": v.T @ hidden / len(v)}]}

    return jax.tree.map(lambda model, data: np.float32(model - data), phase(v_model), phase(v_data))


class BernoulliRBM(Model):
    def gradient(self, v_data, v_model):
        return rbm_gradient(self.params, v_data, v_model)


@each_golden("rbm_replay")
def test_golden_rbm_training(case):
    name, npz = case["id"], GOLDEN["rbm_replay"]
    v_data, v_model = (np.unpackbits(npz[f"{name}/{phase}"], axis=-1).astype(float) for phase in ("v_data", "v_model"))
    params = golden("rbm_replay", name, "param")
    model = BernoulliRBM(row(params, 0))
    chex.assert_trees_all_close(
        model.gradient(v_data[0], v_model[0]), row(golden("rbm_replay", name, "grad_first2"), 0), atol=1e-6
    )
    optimizer = make_optimizer(case | {"tolerance_is_default": True})
    reached = [model.params]
    for t, epoch in enumerate(npz[f"{name}/epoch"]):
        optimizer.update(model, v_data[t], v_model[t], int(epoch))
        if t + 1 in case["param_rows_after_step"]:
            reached.append(model.params)
    chex.assert_trees_all_close(stack(reached), params, rtol=0, atol=1e-4)


# --- what raised in 2017: kept, or mended ------------------------------------------------------------

G = gradient()
KEPT = {
    "memory_normalize_before_update": lambda: optimizers.GradientMemory(0.9, 0.9).normalize(G),
    "magnitude_empty": lambda: optimizers.gradient_magnitude({}),
    "sgd_no_weights_key": lambda: updated(optimizers.SGD(None), {"layers": G["layers"]}),
    "powerlaw_pole": lambda: updated(optimizers.SGD(None), G, epoch=-10),
    "scheduler_base_get_lr": lambda: optimizers.Scheduler().get_lr(),
    "optimizer_base_update": lambda: optimizers.Optimizer().update(Model(), G, None, 0),
}


def delta(optimizer):
    return updated(optimizer, gradient(seed=2), G, epoch=3).delta


RATE = 0.001 / 1.3  # default step size and schedule at epoch 3
MENDED = {
    "momentum_0": lambda: (delta(optimizers.Momentum(None, momentum=0)), scaled(G, RATE)),
    "adam_mean_weight_0": lambda: (
        delta(optimizers.ADAM(None, mean_weight=0)),
        delta(optimizers.RMSProp(None, mean_square_weight=0.999)),
    ),
    "adam_mean_square_weight_0": lambda: (
        delta(optimizers.ADAM(None, mean_square_weight=0)),
        delta(optimizers.Momentum(None)),
    ),
    "rmsprop_mean_square_weight_0": lambda: (
        delta(optimizers.RMSProp(None, mean_square_weight=0)),
        scaled(G, RATE),
    ),
    "memory_normalize_msw0": lambda: (updated_memory(G).normalize(G), G),
    "sgd_check_before_update": lambda: (optimizers.SGD(None).check_convergence(), False),
    "sgd_float_epoch": lambda: (
        updated(optimizers.SGD(None, scheduler=optimizers.PowerLawDecay(0.5)), G, epoch=1.5).scheduler.lr,
        0.5714285714285714,
    ),
}


def updated_memory(*gradients, **weights):
    memory = optimizers.GradientMemory(**weights)
    for g in gradients:
        memory.update(g)
    return memory


def test_every_recorded_exception_is_kept_or_mended():
    assert {case["id"] for case in MANIFEST["raises"]} == KEPT.keys() | MENDED.keys()


@pytest.mark.parametrize("name", KEPT)
def test_kept_exception(name):
    (case,) = (case for case in MANIFEST["raises"] if case["id"] == name)
    with pytest.raises(getattr(builtins, case["raises"])):
        KEPT[name]()


@pytest.mark.parametrize("name", MENDED)
def test_mended_exception(name):
    made, expected = MENDED[name]()
    chex.assert_trees_all_close(made, expected, rtol=2e-6)


def test_a_gradient_without_weights_changes_nothing():
    model, optimizer = Model(gradient(seed=3)), optimizers.SGD(None)
    with pytest.raises(KeyError, match="weights"):
        optimizer.update(model, {"layers": G["layers"]}, None, 3)
    chex.assert_trees_all_equal(model.params, gradient(seed=3))
    assert (optimizer.scheduler.iter, optimizer.scheduler.epoch) == (1, 3)


@each_class
def test_no_convergence_before_the_first_update(cls):
    assert cls(None).check_convergence() is False
    assert optimizers.Optimizer(tolerance=np.inf).check_convergence() is False


# --- schedulers --------------------------------------------------------------------------------------


class HalfEachUpdate(optimizers.Scheduler):
    """A user's scheduler, which depends on the number of the update."""

    def get_lr(self):
        self.lr = 0.5**self.iter
        return self.lr


def test_a_users_own_scheduler():
    scheduler = HalfEachUpdate()
    optimizer = optimizers.SGD(None, stepsize=1.0, scheduler=scheduler)
    assert optimizer.scheduler is scheduler
    for factor in (0.5, 0.25, 0.125):
        chex.assert_trees_all_equal(updated(optimizer, G, epoch=7).delta, scaled(G, np.float32(factor)))
    assert (scheduler.iter, scheduler.epoch) == (3, 7)


@each_class
def test_the_default_scheduler_is_not_shared(cls):
    first, second = cls(None), cls(None)
    updated(first, G, G, epoch=4)
    assert (first.scheduler.iter, second.scheduler.iter, cls(None).scheduler.iter) == (2, 0, 0)
    assert (first.scheduler.epoch, second.scheduler.epoch) == (4, 0)


# --- array kinds and safety --------------------------------------------------------------------------


def assert_rounded(actual, in_float32):
    """The result of float32 arithmetic, rounded to the given dtype."""

    def check(a, e):
        precision = max(jnp.finfo(a.dtype).eps, jnp.finfo(jnp.float32).eps)
        np.testing.assert_allclose(np.float64(a), np.float64(e), rtol=float(precision))

    jax.tree.map(check, actual, in_float32)


@each_class
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_numpy_out(cls, dtype):
    optimizer, reference = cls(None), cls(None)
    g, params = gradient(dtype=dtype), gradient(seed=3, dtype=dtype)
    for _ in range(2):
        updated(optimizer, g)
        assert_rounded(optimizer.delta, updated(reference, jax.tree.map(np.float32, g)).delta)
        for p, d in zip(jax.tree.leaves(params), jax.tree.leaves(optimizer.delta), strict=True):
            assert type(d) is np.ndarray
            assert d.dtype == dtype
            expected, same = p - d, p
            p -= d
            assert p is same
            np.testing.assert_array_equal(p, expected)
            d[:] = 0  # It is writable, and no part of the optimizer's state: the next step is compared again.
    chex.assert_trees_all_equal(g, gradient(dtype=dtype))


@each_class
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_jax_in_jax_out(cls, dtype):
    g = gradient(array=jnp.array, dtype=dtype)
    in_float32 = jax.tree.map(lambda x: x.astype("float32"), g)
    optimizer = updated(cls(None), g, g)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(optimizer.delta))
    chex.assert_trees_all_equal_dtypes(optimizer.delta, g)
    assert_rounded(optimizer.delta, updated(cls(None), in_float32, in_float32).delta)


@each_class
def test_each_leaf_keeps_its_own_kind(cls):
    g = {"layers": [{"loc": np.ones(3, np.float32)}, {"loc": jnp.ones(2)}], "weights": []}
    numpy_leaf, jax_leaf = (layer["loc"] for layer in updated(cls(None), g).delta["layers"])
    assert type(numpy_leaf) is np.ndarray
    assert isinstance(jax_leaf, jax.Array)


@each_class
@each_kind
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_nonfinite_numbers_pass_without_a_warning(cls, array, dtype):
    g = {"a": array([np.nan, np.inf, -np.inf, 6e4, 0.0], dtype)}
    first, second = (updated(cls(None, stepsize=1e3), *[g] * n).delta["a"] for n in (1, 2))
    assert np.isnan(first[0])
    assert np.isnan(second[0])
    assert second[-1] == 0


@each_class
def test_a_model_may_change_its_kind_of_arrays(cls):
    """A small model in NumPy is updated in NumPy, other models in JAX."""
    kinds = [(np.array, np.float32), (jnp.array, np.float32), (np.array, np.float32), (np.array, np.float64)]
    optimizer, same_kind = cls(None), cls(None)
    for seed, (array, dtype) in enumerate(kinds):
        g = gradient(seed, array, dtype)
        updated(optimizer, g)
        updated(same_kind, gradient(seed, jnp.array))
        chex.assert_trees_all_equal_dtypes(optimizer.delta, g)
        assert all(isinstance(leaf, np.ndarray) == (array is np.array) for leaf in jax.tree.leaves(optimizer.delta))
        chex.assert_trees_all_close(optimizer.delta, same_kind.delta, rtol=1e-5)


@each_class
def test_a_scalar_array_may_become_a_number(cls):
    optimizer = updated(cls(None), {"a": np.ones(3, np.float32), "b": np.array(1.5, np.float32)})
    twin = updated(cls(None), {"a": jnp.ones(3), "b": jnp.array(1.5)})
    updated(optimizer, {"a": np.ones(3, np.float32), "b": 1.5})
    chex.assert_trees_all_close(optimizer.delta, updated(twin, {"a": jnp.ones(3), "b": 1.5}).delta, rtol=1e-5)


@each_class
@pytest.mark.parametrize("size", [3, 20_000])
def test_foreign_byte_order_is_refused_before_the_model_changes(cls, size):
    model = Model({"a": np.ones(size)})
    with pytest.raises(TypeError, match=r">f4|gradient\['a'\]"):  # jax 0.9 names the leaf, not its dtype
        cls(None).update(model, {"a": np.ones(size, ">f4")}, None, 0)
    chex.assert_trees_all_equal(model.params, {"a": np.ones(size)})


@each_class
def test_moments_keep_their_precision_under_x64(cls):
    """In NumPy as in JAX: moments of float32 leaves stay float32 beside float64 leaves, and after them."""
    with jax.enable_x64(True):
        for dtypes in ([np.float32, np.float64], [np.float64, np.float32]):
            for beside in (np.float32, np.float64):
                results = []
                for array in (np.array, jnp.array):
                    g = [{"a": array([1e25], dtype), "b": array([1.0], beside)} for dtype in dtypes]
                    g[1]["a"] *= array(1e-25, dtypes[1])
                    results.append(updated(cls(None), *g).delta)
                chex.assert_trees_all_close(*results, rtol=1e-5)


@each_class
def test_a_leaf_does_not_depend_on_other_leaves(cls):
    """A large leaf sends the small ones through JAX; their numbers stay."""
    small, large = {"a": G["layers"][0]["loc"], "b": G["weights"][0]["matrix"]}, np.ones((200, 200), np.float32)
    with_large = updated(cls(None), *[small | {"c": large}] * 3).delta
    assert all(leaf.flags.writeable for leaf in jax.tree.leaves(with_large))
    with_large.pop("c")
    chex.assert_trees_all_close(updated(cls(None), *[small] * 3).delta, with_large, rtol=1e-5)


@pytest.mark.parametrize(
    ("array", "dtype", "moment_dtype"),
    [
        (np.array, "float16", "float32"),
        (np.array, "float32", "float32"),
        (np.array, "float64", "float64"),
        (jnp.array, "float16", "float32"),
        (jnp.array, "float32", "float32"),
    ],
)
def test_memory_keeps_kind_and_dtype(array, dtype, moment_dtype):
    """Moments are at least float32, because the square of 300 overflows float16."""
    grads = [{"layers": [{"loc": array([300, -1e-3], dtype)}]}] * 3
    memory = updated_memory(*grads, mean_weight=0.9, mean_square_weight=0.8)
    kind = np.ndarray if array is np.array else jax.Array
    for tree, expected_dtype, expected in (
        (memory.mean_gradient, moment_dtype, [300, -1e-3]),
        (memory.mean_square_gradient, moment_dtype, [9e4, 1e-6]),
        (memory.normalize(grads[0]), dtype, [1, -1e-3 / np.sqrt(1e-6 + 2**-23)]),
    ):
        leaf = tree["layers"][0]["loc"]
        assert isinstance(leaf, kind)
        assert leaf.dtype == expected_dtype
        np.testing.assert_allclose(np.float64(leaf), expected, rtol=1e-3 if dtype == "float16" else 1e-6)


@each_class
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: g | {"weights": [{"matrix": np.ones((4, 2), np.float32)}]},
            r"\['weights'\]\[0\]\['matrix'\].*\(4, 3\).*\(4, 2\)",
        ),
        (lambda g: g | {"weights": []}, r"\['weights'\]\[0\]\['matrix'\]: missing"),
        (lambda g: g | {"weights": g["weights"] * 2}, r"\['weights'\]\[1\]\['matrix'\]: unexpected"),
    ],
    ids=["shape", "missing", "unexpected"],
)
def test_a_changed_tree_is_refused_and_does_no_harm(cls, change, message):
    optimizer, undisturbed = updated(cls(None), G), updated(cls(None), G)
    model = Model(gradient(seed=3))
    with pytest.raises(ValueError, match=message):
        optimizer.update(model, change(G), None, 0)
    chex.assert_trees_all_equal(model.params, gradient(seed=3))
    chex.assert_trees_all_equal(updated(optimizer, G).delta, updated(undisturbed, G).delta)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@each_class
def test_a_copy_in_mid_run_continues_identically(cls, copied):
    optimizer = updated(cls(None), gradient(1), gradient(2), epoch=1)
    twin = copied(optimizer)
    for seed in (3, 4):
        updated(optimizer, gradient(seed), epoch=seed)
    for seed in (3, 4):
        updated(twin, gradient(seed), epoch=seed)
    chex.assert_trees_all_equal(twin.delta, optimizer.delta)
    assert (twin.scheduler.iter, twin.scheduler.epoch, twin.scheduler.lr) == (4, 4, optimizer.scheduler.lr)


@each_kind
@each_class
def test_a_shallow_copy_and_its_original_both_continue(cls, array):
    """A compiled step donates the buffers of the state, so two optimizers must not share them."""
    optimizer = updated(cls(None), gradient(1, array))
    twin, reference = copy.copy(optimizer), copy.deepcopy(optimizer)
    updated(optimizer, gradient(5, array))
    for seed in (2, 3):
        updated(twin, gradient(seed, array))
        updated(reference, gradient(seed, array))
    chex.assert_trees_all_equal(twin.delta, reference.delta)


@each_kind
@each_class
def test_a_gradient_may_be_a_bare_array(cls, array):
    g = array(np.linspace(-1, 2, 4), np.float32)
    bare, in_a_tree = updated(cls(None), g, 2 * g), updated(cls(None), {"a": g}, {"a": 2 * g})
    chex.assert_trees_all_equal(bare.delta, in_a_tree.delta["a"])
    assert bare.check_convergence() == in_a_tree.check_convergence()
    with pytest.raises(ValueError, match=r"gradient: expected shape \(4,\) as in the last update, got \(3,\)"):
        updated(bare, g[:3])


@pytest.mark.parametrize("dtype", [int, bool])
@each_class
def test_a_gradient_of_integers_is_named(cls, dtype):
    with pytest.raises(TypeError, match=r"gradient\['layers'\]\[0\]\['loc'\]: expected a floating or complex dtype"):
        updated(cls(None), gradient(dtype=dtype))


@pytest.mark.parametrize("wrong", [-0.1, np.nan, np.inf, None, "0.1", 1j, np.float32(-1), jnp.float32(np.nan)], ids=str)
@each_class
def test_a_wrong_step_size_is_refused_before_the_model_changes(cls, wrong):
    """Also a step size that was set after the optimizer was created."""
    optimizer, model = cls(None), Model(gradient(seed=3))
    optimizer.stepsize = wrong
    for each in (cls(None, stepsize=wrong), optimizer):
        with pytest.raises((TypeError, ValueError), match=rf"{cls.__name__}: stepsize must be .*\[0, inf\)"):
            each.update(model, G, None, 0)
    chex.assert_trees_all_equal(model.params, gradient(seed=3))


@each_class
def test_one_trace_for_all_epochs_and_settings(cls, monkeypatch):
    rule = getattr(classic, {"StochasticGradientDescent": "sgd"}.get(cls.__name__, cls.__name__.lower()))
    monkeypatch.setattr(rule, "update", chex.assert_max_traces(rule.update, n=1))
    g = gradient(array=jnp.array, visible=11)  # a shape of this test's own, for it must be traced here
    epochs = [
        0,
        1,
        10**6,
        2.5,
        np.int32(3),
        np.int64(3),
        np.float32(1.5),
        np.float64(1.5),
        jnp.int32(4),
        jnp.float32(0.5),
    ]
    for settings in ({}, {"stepsize": 1}, {"scheduler": optimizers.ExponentialDecay(0.3)}):
        optimizer = cls(None, **settings)
        for epoch in epochs:
            updated(optimizer, g, epoch=epoch)
    with pytest.raises(AssertionError, match="traced > 1"):
        updated(cls(None), gradient(array=jnp.array, visible=12))
