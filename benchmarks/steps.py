"""Steps of our optimizers and of optax's. Every function yields results, given the seconds for each comparison.

The forms of our step: "tree": parameters and gradients are trees; "packed": everything is packed; "packed parameters":
parameters and moments are packed, the gradients are a tree; "packed moments": only the moments are packed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import paysage_jax as pj

from . import peers
from .measure import PAUSE, Result, check_same_work, compare, in_turn, timed
from .peers import optax
from .trees import TREES, leaves_of, normal, on_device, params_and_gradients

RATE = 0.001
FORMS = ("tree", "packed", "packed parameters", "packed moments")
OPTIMIZERS = {  # ours, optax's, the number of moments
    "adam": (pj.adam(RATE), lambda: optax.adam(RATE), 2),
    "rmsprop": (pj.rmsprop(RATE), lambda: optax.rmsprop(RATE), 1),
    "momentum": (pj.momentum(RATE), lambda: optax.sgd(RATE, momentum=0.9), 1),
    "sgd": (pj.sgd(RATE), lambda: optax.sgd(RATE), 0),
}


class Loop:
    """A step(params, state, *rest) -> (params, state), jitted and donated, called repeatedly on its results."""

    def __init__(self, step, params, state, *rest):
        self.step = jax.jit(step, donate_argnums=(0, 1))
        self.params, self.state, self.rest = params, state, rest

    def __call__(self, count):
        for _ in range(count):
            self.params, self.state = self.step(self.params, self.state, *self.rest)
        jax.block_until_ready((self.params, self.state))

    def values(self):
        return leaves_of(self.params)


def step_of(optimizer, apply_updates, arrange: Callable | None = None):
    """update and apply_updates as one step; `arrange(gradients, params)` comes before."""

    def step(params, state, gradients):
        if arrange:
            gradients = arrange(gradients, params)
        updates, state = optimizer.update(gradients, state, params)
        return apply_updates(params, updates), state

    return step


def ours(form, optimizer, params, gradients):
    """(step, params, state, gradients) in one of the forms; the gradients are not copied."""
    params = jax.tree.map(jnp.copy, params)
    step = step_of(optimizer, pj.apply_updates)
    if form == "packed parameters":
        step = step_of(optimizer, pj.apply_updates, arrange=pj.packing.pack_like)
    if form == "packed moments":
        optimizer = pj.packing.pack_moments(optimizer)
        step = step_of(optimizer, pj.apply_updates)
    if form in ("packed", "packed parameters"):
        params = pj.packing.pack(params)
    if form == "packed":
        gradients = pj.packing.pack(gradients)
    return step, params, optimizer.init(params), gradients


def theirs(optimizer, params, gradients):
    """The same for an optimizer of optax."""
    params = jax.tree.map(jnp.copy, params)
    return step_of(optimizer, optax.apply_updates), params, optimizer.init(params), gradients


# --- one step ----------------------------------------------------------------------------------------


def one_step(workload: str, seconds: float) -> Iterator[Result]:
    """A step of each optimizer."""
    trees = params_and_gradients(workload)
    leaves, gradient_leaves = map(jax.tree.leaves, trees)
    trees = on_device(trees)
    for name, (optimizer, make_theirs, moments) in OPTIMIZERS.items():
        mine = {form: Loop(*ours(form, optimizer, *trees)) for form in _forms(workload, name)}
        others: dict[str, Any] = {"optax": optax and Loop(*theirs(make_theirs(), *trees))}
        not_jax = peers.steps_of_adam(leaves, gradient_leaves, RATE) if name == "adam" else {}
        check_same_work(leaves, mine | others | not_jax)
        title = f"{name}, one step: {TREES[workload][0]}"
        # Parameters and moments are read and written, gradients are read.
        floor = {"floor": peers.floor(4 * (3 + 2 * moments) * sum(p.size for p in leaves))}
        yield compare(title, mine, others | floor, seconds)
        if any(not_jax.values()):
            # A separate comparison, because the threads of torch spin after its work and slow down later work.
            yield compare(f"{title}, beside other libraries", mine, others | not_jax, seconds, pause=PAUSE)


def _forms(workload, optimizer):
    if workload == "W1":
        return FORMS[:1]  # a large leaf is never packed
    if optimizer == "adam" or workload == "W5":
        return FORMS
    # Trees and packed moments of 2,000 leaves take too long to compile for every optimizer.
    return FORMS[1:3] if workload == "W4" else FORMS[:1]


def bfloat16(seconds: float) -> Iterator[Result]:
    """bfloat16 parameters with float32 moments, and whether the second moment is right after 5,000 steps."""
    gradients = on_device(normal(TREES["W1"][1]), jnp.bfloat16)
    # From zero, because in bfloat16 a parameter of 0.1 would lose a step of 0.001.
    trees = jax.tree.map(jnp.zeros_like, gradients), gradients
    mine = {"tree": Loop(*ours("tree", pj.adam(RATE), *trees))}
    others: dict[str, Any] = {"optax": optax and Loop(*theirs(optax.adam(RATE, mu_dtype=jnp.float32), *trees))}
    check_same_work(leaves_of(trees[0]), mine | others, tolerance=0.02)
    others["floor"] = peers.floor(22 * gradients["w"].size)  # 3 times 2 bytes for p and g, 4 times 4 for the moments
    result = compare(f"adam, one step, bfloat16 parameters: {TREES['W1'][0]}", mine, others, seconds)
    result.figures["second moment after 5,000 steps over its closed form"] = _second_moment(
        pj.adam(RATE), pj.apply_updates, lambda state: state.mean_square
    )
    if optax:
        result.figures["the same in optax"] = _second_moment(
            optax.adam(RATE, mu_dtype=jnp.float32), optax.apply_updates, lambda state: state[0].nu
        )
    yield result


def _second_moment(optimizer, apply_updates, read, steps=5000, gradient=0.01):
    """Adam's second moment after so many equal gradients, divided by gradient² (1 - b2**steps)."""
    params, gradients = jnp.zeros(8, jnp.bfloat16), jnp.full(8, gradient, jnp.bfloat16)
    step = step_of(optimizer, apply_updates)
    start = params, optimizer.init(params)
    _, state = jax.lax.fori_loop(0, steps, lambda _, carry: step(carry[0], carry[1], gradients), start)
    return float(read(state)[0]) / (float(gradients[0]) ** 2 * (1 - 0.999**steps))


def schedules(seconds: float) -> Iterator[Result]:
    """A schedule evaluated inside the step, against a constant learning rate."""
    trees = on_device(params_and_gradients("W5"))

    def loop(form, learning_rate):
        return Loop(*ours(form, pj.adam(learning_rate), *trees))

    for form in ("tree", "packed"):
        mine = {
            "power_law_decay": loop(form, pj.power_law_decay(RATE, 0.1, steps_per_epoch=32)),
            "exponential_decay": loop(form, pj.exponential_decay(RATE, 0.9, steps_per_epoch=32)),
        }
        title = f"adam with a schedule, one step, {form}: {TREES['W5'][0]}"
        yield compare(title, mine, {"constant": loop(form, RATE)}, seconds)


def wrappers(seconds: float) -> Iterator[Result]:
    """Adam with a transformation before or around it, compared with the same in optax."""
    pairs = {
        "clip_by_global_norm": (
            lambda: pj.chain(pj.clip_by_global_norm(1.0), pj.adam(RATE)),
            lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)),
        ),
        "add_decayed_weights": (
            lambda: pj.chain(pj.add_decayed_weights(0.01), pj.adam(RATE)),
            lambda: optax.chain(optax.add_decayed_weights(0.01), optax.adam(RATE)),
        ),
        "weight_decay": (lambda: pj.adam(RATE, weight_decay=0.01), lambda: optax.adamw(RATE, weight_decay=0.01)),
        "skip_nonfinite": (
            lambda: pj.skip_nonfinite(pj.adam(RATE)),
            lambda: optax.apply_if_finite(optax.adam(RATE), max_consecutive_errors=2**30),
        ),
    }
    for workload in ("W2", "W5"):
        trees = on_device(params_and_gradients(workload))
        for name, (make_ours, make_theirs) in pairs.items():
            mine = {"tree": Loop(*ours("tree", make_ours(), *trees))}
            others = {"optax": optax and Loop(*theirs(make_theirs(), *trees))}
            check_same_work(leaves_of(trees[0]), mine | others)
            yield compare(f"adam with {name}, one step: {TREES[workload][0]}", mine, others, seconds)


# --- several steps, whole training steps, compilation ------------------------------------------------


class Calls:
    """Several calls of a variant as one."""

    def __init__(self, variant, number):
        self.variant, self.number, self.values = variant, number, variant.values

    def __call__(self, count):
        self.variant(count * self.number)


def fifty_steps(seconds: float) -> Iterator[Result]:
    """50 steps in one jit, against 50 calls."""

    def fitting(step, *rest):
        # With a constant gradient, its products with b1 and b2 would be computed once, before the loop.
        return lambda params, state, target: step(params, state, jax.tree.map(jnp.subtract, params, target)), *rest

    def fifty(step, *rest):
        def steps(params, state, target):
            return jax.lax.fori_loop(0, 50, lambda _, carry: step(*carry, target), (params, state))

        return steps, *rest

    for workload, form in (("W5", "packed"), ("W4", "packed"), ("W2", "tree")):
        trees = on_device(params_and_gradients(workload))
        mine = {f"{form}, in one jit": Loop(*fifty(*fitting(*ours(form, pj.adam(RATE), *trees))))}
        others = {"optax, 50 calls": optax and Calls(Loop(*fitting(*theirs(optax.adam(RATE), *trees))), 50)}
        check_same_work(leaves_of(trees[0]), mine | others, steps=1, tolerance=1e-3)
        yield compare(f"adam, 50 steps: {TREES[workload][0]}", mine, others, seconds)


def training(seconds: float) -> Iterator[Result]:
    """A whole training step, gradient included, on 1,000 small leaves."""
    params, target = on_device(normal([(100,)] * 1000)), jnp.ones(100)

    def loop(optimizer, apply_updates, params, read=lambda tree: tree):
        def loss(params, target):
            return sum(jnp.sum((jnp.tanh(leaf) - target) ** 2) for leaf in read(params))

        def step(params, state, target):
            updates, state = optimizer.update(jax.grad(loss)(params, target), state, params)
            return apply_updates(params, updates), state

        params = jax.tree.map(jnp.copy, params)
        return Loop(step, params, optimizer.init(params), target)

    packed = loop(pj.adam(RATE), pj.apply_updates, pj.packing.pack(params), pj.packing.unpack)
    mine = {"packed": packed}
    others = {"optax": optax and loop(optax.adam(RATE), optax.apply_updates, params)}
    check_same_work(leaves_of(params), mine | others)
    yield compare("adam, step with gradient: 1,000 leaves of 100", mine, others, seconds)


def compiling(seconds: float) -> Iterator[Result]:
    """Tracing, lowering and compiling a step. Packed moments only at 100 leaves: more would take minutes."""

    def compile_seconds(parts):
        jax.clear_caches()
        step, *arguments = parts
        return timed(lambda _: jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile(), 1)

    for size in (100, 1000, 5000):
        trees = on_device(normal([[(100,)] * size, [(100,)] * size]))
        forms = FORMS if size == 100 else FORMS[:3]
        parts = {form: ours(form, pj.adam(RATE), *trees) for form in forms}
        if optax:
            parts["optax"] = theirs(optax.adam(RATE), *trees)
        timers = {name: partial(compile_seconds, part) for name, part in parts.items()}
        peers_here = ["optax"] if optax else []
        yield in_turn(f"adam, compiling a step: {size:,} leaves of 100", timers, peers_here, seconds, least_rounds=1)
