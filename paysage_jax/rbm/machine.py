"""A restricted Boltzmann machine with any two kinds of units, derived from the equations of its units."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from .._core.batches import as_floats
from .._core.pytree import Pytree, check_count
from .._core.threefry import unrolled
from .._core.trees import floating_dtype, moment_dtype
from .._core.types import Batch, Params, Tree
from .._ebm.annealing import Annealing, linear_path
from .._ebm.domain import mean_over_rows
from .units import Binary, Layer, Unit

States = Array | np.ndarray  # (rows, units)

MOST_STATES = 2**20  # the largest number of states of a layer for the exact partition function
_BLOCK = 2**12  # the number of states summed at a time, which bounds the memory

VISIBLE, HIDDEN = 0, 1


class RBM(Pytree):
    """A restricted Boltzmann machine, for use with estimators, metrics, annealing and tracking.

        E(v, h) = e(v) + e(h) - t(v)·W t(h),   p(v) = exp(-F(v)) / Z,   F(v) = e(v) - Σ log z(t(v) W)

    The kinds of units define e, t and z. The parameters are a tree as in paysage,
    {"layers": [visible, hidden], "weights": [{"matrix": W}]}, with W of shape (visible, hidden).

    If states or parameters are bfloat16 or float16, energies and probabilities are computed in float32. Energies are
    returned in float32; states and means are returned in the dtype of the given states.

    If both layers are real-valued and W is too large, the energy is unbounded below and no distribution exists.

    Args:
        visible, hidden: kinds of units, for example `Binary()` and `Gaussian()`.

    >>> import paysage_jax as pj
    >>> v, key = jnp.eye(4), jax.random.key(0)
    >>> machine = RBM(hidden=pj.rbm.Spin())
    >>> params = machine.init(v, num_hidden=2, key=key)
    >>> estimator = pj.persistent_contrastive_divergence(machine, num_chains=10)
    >>> result = pj.fit(params, pj.sgd(0.1), estimator, v, epochs=2, batch_size=4, key=key)
    """

    sample_hidden = None  # data are complete states
    visible: Unit = Binary()
    hidden: Unit = Binary()

    @property
    def integer_states(self) -> bool:
        """Whether integer data stay integers; otherwise integers and bools are converted to floats."""
        return self.visible.integer_states

    def check_states(self, name: str, v: Batch) -> None:
        """Raise a TypeError or ValueError that names row and column, if v is not a state of the visible units."""
        self.visible.check(name, v)

    def init(self, data: Batch, num_hidden: int, key: Array) -> Params:
        """Return initial parameters: visible units that match the data, and small random weights.

            W ~ 0.01 N(0, 1)

        If v are real numbers, W is divided by the standard deviations of t(v), and loc of the hidden units is
        -Wᵀ mean t(v). The hidden units then see deviations from the mean, and the initial distribution does not depend
        on the units of measurement. Training does depend on them, because the learning rate has the units of the
        parameters; `standardize` scales the data to unit variance.

        Args:
            data: an array (rows, visible) of values of the visible units, or `Weighted`. A
                floating dtype is also the dtype of the parameters.
            num_hidden: the number of hidden units, a positive integer.
            key: a PRNG key.

        Raises:
            TypeError, ValueError: if the data are not such an array. The message names row and column of a wrong value.
        """
        check_count("init: num_hidden", num_hidden)
        rows = self.visible.rows("init: data", data)
        params = _with_weights(self, self.visible.start("init", rows), num_hidden, key)
        given = rows.v.dtype if jnp.issubdtype(rows.v.dtype, jnp.floating) else None
        return jax.tree.map(lambda p: p.astype(given or p.dtype), params)

    # --- the energy ----------------------------------------------------------------------------------

    def energy(self, params: Params, v: States) -> Array:
        """The free energy F(v) of every row of v, with the hidden units summed out.

        Args:
            params: the parameters.
            v: visible states (rows, visible).
        """
        return self._free_energy("energy", VISIBLE, params, v)

    def hidden_free_energy(self, params: Params, h: States) -> Array:
        """The free energy of every row of h, with the visible units summed out.

            -log ∫ exp(-E(v, h)) dv

        Args:
            params: the parameters.
            h: hidden states (rows, hidden).
        """
        return self._free_energy("hidden_free_energy", HIDDEN, params, h)

    def _free_energy(self, name: str, side: int, params: Params, x: States) -> Array:
        params, x = self._wide_states(name, side, params, x)
        unit, layer = self._layer(side, params)
        other, other_layer = self._layer(1 - side, params)

        def of_state(x: Array) -> Array:
            return unit.energy(layer, x) - jnp.sum(other.log_normalizer(other_layer, self._field(side, params, x)))

        return jax.vmap(of_state)(x)

    def _field(self, side: int, params: Params, x: Array) -> Array:
        """The field on the other layer: t(v) W, or W t(h)."""
        unit, layer = self._layer(side, params)
        t, W = unit.statistic(layer, x), params["weights"][0]["matrix"]
        return jnp.tensordot(t, W, t.ndim) if side == VISIBLE else jnp.tensordot(W, t, t.ndim)

    def _layer(self, side: int, params: Params) -> tuple[Unit, Layer]:
        unit, layer = (self.visible, self.hidden)[side], params["layers"][side]
        if set(layer) != set(unit.names):
            raise ValueError(
                f"params['layers'][{side}]: {type(unit).__name__} units have {', '.join(unit.names)}, got "
                f"{', '.join(layer)}; create the RBM with the kinds of units of these parameters"
            )
        return unit, layer

    def _wide_states(self, name: str, side: int, params: Params, x: States) -> tuple[Params, Array]:
        """Parameters and states in at least float32. Integers stay integers if they are indices of categories."""
        unit, layer = self._layer(side, params)
        loc, shape = jnp.shape(layer["loc"]), getattr(x, "shape", None)
        if shape is None or len(shape) < 2 or shape[1:] not in (loc[:1], loc):  # other shapes might broadcast
            got = f"a {type(x).__name__}" if shape is None else f"shape {shape}"
            raise ValueError(f"{name}: expected states (rows, {loc[0]}) as in params, got {got}")
        params = widen(params)
        return params, widen(x if unit.integer_states else as_floats(x, floating_dtype(params)))

    # --- sampling ------------------------------------------------------------------------------------

    def hidden_mean(self, params: Params, v: States) -> Array:
        """The mean of h given v, for every row of v; for categories, the probabilities (rows, hidden, states)."""
        return self._mean("hidden_mean", VISIBLE, params, v)

    def visible_mean(self, params: Params, h: States) -> Array:
        """The mean of v given h, for every row of h; for categories, the probabilities (rows, visible, states)."""
        return self._mean("visible_mean", HIDDEN, params, h)

    def _mean(self, name: str, side: int, params: Params, x: States) -> Array:
        wide, states = self._wide_states(name, side, params, x)
        unit, layer = self._layer(1 - side, wide)
        mean = jax.vmap(lambda x: unit.mean(layer, self._field(side, wide, x)))(states)
        return _in_float_dtype_of(x, mean)

    def hidden_sample(self, params: Params, v: States, key: Array) -> Array:
        """A sample from p(h | v) for every row of v."""
        return self._sample("hidden_sample", VISIBLE, params, v, key)

    def visible_sample(self, params: Params, h: States, key: Array) -> Array:
        """A sample from p(v | h) for every row of h."""
        return self._sample("visible_sample", HIDDEN, params, h, key)

    def _sample(self, name: str, side: int, params: Params, x: States, key: Array) -> Array:
        wide, states = self._wide_states(name, side, params, x)
        unit, layer = self._layer(1 - side, wide)
        noise = noise_for(unit, key, states, *_size(layer))
        return _in_float_dtype_of(x, self._draw(side, wide, states, noise))

    def _draw(self, side: int, params: Params, x: Array, noise: Array) -> Array:
        """A sample of the other layer given this one."""
        unit, layer = self._layer(1 - side, params)
        return jax.vmap(lambda x, noise: unit.draw(layer, self._field(side, params, x), noise))(x, noise)

    def transition(self, params: Params, v: States, key: Array) -> Array:
        """One step of block Gibbs sampling, v to h to v. It leaves p(v) invariant.

        Args:
            params: the parameters.
            v: visible states (rows, visible).
            key: a PRNG key.
        """
        wide, states = self._wide_states("transition", VISIBLE, params, v)
        (n, dtype), (m, _) = map(_size, wide["layers"])
        if self.visible.noise is self.hidden.noise:
            # One call draws for both layers, because on a CPU each operation on a key counts in a small RBM.
            for_h, for_v = jnp.split(noise_for(self.hidden, key, states, m + n, dtype), [m], axis=1)
        else:
            h_key, v_key = jax.random.split(key)
            for_h, for_v = (
                noise_for(self.hidden, h_key, states, m, dtype),
                noise_for(self.visible, v_key, states, n, dtype),
            )
        h = self._draw(VISIBLE, wide, states, for_h)
        return self._as_given(v, self._draw(HIDDEN, wide, h, for_v))

    def _as_given(self, given: States, v: Array) -> Array:
        """Visible states in the form (one-hot or not) and dtype of the given ones. Real values stay floating."""
        v = in_form_of(given, v)
        return v.astype(jnp.result_type(given)) if self.visible.values is not None else _in_float_dtype_of(given, v)

    def impute(self, params: Params, v: States, missing: States, key: Array, steps: int = 100) -> Array:
        """Sample the missing units of every row given its known units, by Gibbs sampling with the known units clamped.

        Sampling starts from independent visible units. The mean of many samples estimates the conditional mean of the
        missing units.

        Args:
            params: the parameters.
            v: visible states (rows, visible). Values of missing units are ignored, and may be NaN.
            missing: bools (rows, visible), True where a unit is missing; for example `jnp.isnan(v)`.
            key: a PRNG key.
            steps: the number of Gibbs steps, a positive integer.

        Raises:
            TypeError, ValueError: for a value that the visible units do not allow, naming row and column, and for a
                mask of another shape or dtype.
        """
        check_count("impute: steps", steps)
        self._wide_states("impute", VISIBLE, params, v)
        missing = mask_for("impute: missing", missing, v)
        first_key, key = jax.random.split(key)
        drawn = self._as_given(v, self._independent(params, len(v), first_key))
        start = jnp.where(missing, drawn, jnp.asarray(v))
        return _clamped_chain(self, params, self.visible.rows("impute: v", start).v, missing, key, steps)

    def activations(self, params: Params, gradient: Params) -> Params:
        """The means of t(v) and t(h), computed from the gradient of a mean energy, as `center` requires them.

        Args:
            params: the parameters.
            gradient: the gradient of a mean energy, a tree like `params`.

        Returns:
            the means of t(v) and of t(h), in a tree with only the leaves `loc` of both layers.

        >>> import paysage_jax as pj
        >>> machine = RBM(visible=pj.rbm.Gaussian())
        >>> optimizer = pj.chain(pj.center(activations=machine.activations), pj.sgd(0.01))
        """
        units, layers = (self.visible, self.hidden), zip(params["layers"], gradient["layers"], strict=True)
        return {"layers": [{"loc": unit.activations(*layer)} for unit, layer in zip(units, layers, strict=True)]}

    def zero_sum(self, params: Params) -> Params:
        """Return parameters of the same distribution in the zero-sum gauge: they sum to 0 over the states of a unit.

            W[i, a] -= mean W[i],   loc of the other layer += Σᵢ mean W[i],   loc[i, a] -= mean loc[i]

        A categorical unit takes exactly one of its states, so a constant added to the parameters of all its states does
        not change any probability. Among all parameters with the same p, the zero-sum gauge has the smallest Σ W².
        Energies change by a constant. Parameters of other kinds of units stay unchanged. (Ekeberg et al., 2013.)

        Args:
            params: the parameters.

        >>> import paysage_jax as pj
        >>> machine = RBM(visible=pj.rbm.Categorical(5))
        >>> optimizer = pj.chain(pj.adam(0.01), pj.project(machine.zero_sum))
        """
        layers, matrix = [dict(layer) for layer in params["layers"]], params["weights"][0]["matrix"]
        axes = [jnp.ndim(layer["loc"]) for layer in layers]  # 1 for units, 2 for categories with their states
        for side, units in ((VISIBLE, 0), (HIDDEN, axes[VISIBLE])):
            if axes[side] == 2:
                mean = jnp.mean(matrix, axis=units + 1, keepdims=True)
                matrix = matrix - mean
                layers[1 - side]["loc"] += jnp.sum(mean, axis=(units, units + 1))
        for layer in layers:
            if layer["loc"].ndim == 2:
                layer["loc"] -= jnp.mean(layer["loc"], axis=1, keepdims=True)
        return params | {"layers": layers, "weights": [params["weights"][0] | {"matrix": matrix}]}

    # --- likelihood ----------------------------------------------------------------------------------

    def log_likelihood(self, params: Params, v: Batch, log_z: ArrayLike | None = None) -> Array:
        """The mean of log p(v) over the rows of v, in nats.

        For binary units and grey values in [0, 1], the result is a lower bound on the mean of log p over binary rows
        with these means.

        Args:
            params: the parameters.
            v: visible states (rows, visible), or `Weighted` for a weighted mean.
            log_z: log Z of the machine. None computes the exact value with `log_partition`.

        Raises:
            TypeError, ValueError: for a value that the visible units do not allow, unless v is traced, and for a
                machine that is too large for `log_partition`.
        """
        data = self.visible.rows("log_likelihood: v", v)
        log_z = self.log_partition(params) if log_z is None else log_z
        return -mean_over_rows(self.energy(params, data.v), data.weights) - jnp.asarray(log_z)

    def log_partition(self, params: Params) -> Array:
        """The exact log Z, as a sum over all states of the layer with fewer states, at most 2**20.

        Args:
            params: the parameters.

        Raises:
            ValueError: if both layers have more states.
        """
        sides = {side: _number_of_states(*self._layer(side, params)) for side in (HIDDEN, VISIBLE)}
        side = min(sides, key=lambda side: sides[side])
        if sides[side] > MOST_STATES:
            sizes = " and ".join(
                f"{len(layer['loc'])} {name}"
                for name, layer in zip(("visible", "hidden"), params["layers"], strict=True)
            )
            raise ValueError(
                f"log_partition: expected a layer of at most {MOST_STATES} states, got {sizes} units, which are too "
                "many or real-valued; use annealed_importance_sampling"
            )
        return _log_sum_over_layer(self, side, params)

    def annealing(self, params: Params, data: Batch | None, num_chains: int, key: Array) -> Annealing:
        """Construct an annealing path from independent units to this RBM.

            visible(β) = (1 - β) visible(data) + β visible(params),   W(β) = β W

        At the start of the path, the visible units match the data. Hidden units with finitely many values start with
        all values equally likely; other hidden units keep their parameters along the path. The initial states are exact
        samples, and log Z at the start of the path is known (Salakhutdinov & Murray, 2008).

        Args:
            params: the parameters at the end of the path.
            data: an array (rows, visible) or `Weighted`, as for `init`. With None, the visible units start with all
                values equally likely, or with `params` if they are real-valued. That path needs more steps, but finds
                modes far from the data.
            num_chains: the number of initial states.
            key: a PRNG key.

        Raises:
            TypeError, ValueError: for data that `init` rejects, or whose width does not match the parameters.
        """
        visible, hidden = params["layers"]
        if data is None:
            first = _neutral(self.visible, visible)
        else:
            rows = self.visible.rows("annealing: data", data)
            if jnp.shape(rows.v)[1:2] != (units := jnp.shape(visible["loc"])[:1]):
                raise ValueError(
                    f"annealing: data: expected shape (rows, {units[0]}) as in params, got {jnp.shape(rows.v)}"
                )
            first = self.visible.start("annealing", rows)
            first = jax.tree.map(lambda x, like: x.astype(jnp.result_type(like)), first, dict(visible))
        zeros = jax.tree.map(jnp.zeros_like, params)
        start = zeros | {"layers": [first, _neutral(self.hidden, hidden)]}
        chains = _in_float_dtype_of(visible["loc"], self._independent(start, num_chains, key))
        layers = [self._layer(side, widen(start)) for side in (HIDDEN, VISIBLE)]
        log_z = sum(jnp.sum(unit.log_normalizer(layer, jnp.zeros_like(layer["loc"]))) for unit, layer in layers)
        return Annealing(linear_path(start, params), chains, log_z)

    def _independent(self, params: Params, rows: int, key: Array) -> Array:
        """Draw visible states from independent units."""
        unit, layer = self._layer(VISIBLE, widen(params))
        n, dtype = _size(layer)
        noise = unit.noise(unrolled(key), (rows, n), dtype)
        return jax.vmap(lambda noise: unit.draw(layer, jnp.zeros_like(layer["loc"]), noise))(noise)


@partial(jax.jit, static_argnames="num_hidden")
def _with_weights(machine: RBM, visible: Layer, num_hidden: int, key: Array) -> Params:
    """The initial parameters, given those of the visible units."""
    dtype = visible["loc"].dtype
    hidden = jax.tree.map(lambda p: p.astype(dtype), machine.hidden.zeros(num_hidden))
    noise = jax.random.normal(unrolled(key), visible["loc"].shape + hidden["loc"].shape, dtype)
    mean, deviation = _start_statistics(machine.visible, visible)
    deviation = deviation.reshape(*deviation.shape, *[1] * hidden["loc"].ndim)
    matrix = 0.01 / deviation * noise
    field = jnp.tensordot(mean, matrix, mean.ndim, precision="highest")
    hidden = hidden | {"loc": hidden["loc"] - field}
    return {"layers": [visible, hidden], "weights": [{"matrix": matrix}]}


# --- properties of one layer -------------------------------------------------------------------------


def _neutral(unit: Unit, layer: Layer) -> Layer:
    """Parameters for which all values are equally likely; unchanged for real-valued units."""
    return dict(layer) if unit.values is None else jax.tree.map(jnp.zeros_like, dict(layer))


def _number_of_states(unit: Unit, layer: Layer) -> float:
    return np.inf if unit.values is None else len(unit.values) ** len(layer["loc"])


def _start_statistics(unit: Unit, layer: Layer) -> tuple[Array, Array]:
    """The mean and standard deviation of t(x) without a field; for units with finitely many values, 0 and 1.

    The mean and the variance are the first two derivatives of log z.
    """
    zeros, ones = jnp.zeros_like(layer["loc"]), jnp.ones_like(layer["loc"])
    if unit.values is not None:
        return zeros, ones
    mean = jax.grad(lambda field: jnp.sum(unit.log_normalizer(layer, field)))
    of_t, variance = jax.jvp(mean, (zeros,), (ones,))
    return of_t, jnp.sqrt(variance)


# --- rows and random numbers -------------------------------------------------------------------------


def widen(tree: Tree) -> Tree:
    """Convert half precision to float32."""

    def widen(x: Array) -> Array:
        dtype = jnp.result_type(x)
        return x if (wide := moment_dtype(dtype)) == dtype else jnp.asarray(x, wide)

    return jax.tree.map(widen, tree)


def mask_for(name: str, mask: States, v: States) -> Array:
    """The mask as bools (rows, units), with a third axis if v is one-hot. Raises ValueError for other masks."""
    mask, shape = jnp.asarray(mask), jnp.shape(v)[:2]
    if mask.shape != shape or mask.dtype != bool:
        raise ValueError(f"{name}: expected bools of shape {shape}, got shape {mask.shape} and dtype {mask.dtype}")
    return mask.reshape(*shape, *[1] * (jnp.ndim(v) - 2))


def in_form_of(given: States, v: Array) -> Array:
    """One-hot states if the given states are one-hot; otherwise v."""
    return v[..., None] == jnp.arange(given.shape[-1], dtype=v.dtype)[None, None] if v.ndim < given.ndim else v


def _in_float_dtype_of(given: States, x: Array) -> Array:
    """x in the dtype of the given states, if both are floating."""
    floating = all(jnp.issubdtype(jnp.result_type(y), jnp.floating) for y in (given, x))
    return x.astype(jnp.result_type(given)) if floating else x


def _size(layer: Layer) -> tuple[int, DTypeLike]:
    """The number of units and the dtype of their parameters."""
    return len(layer["loc"]), jnp.result_type(layer["loc"])


def noise_for(unit: Unit, key: Array, states: States, units: int, dtype: DTypeLike) -> Array:
    """Random numbers for one layer in every row, sharded like the rows, so that no device draws all of them."""
    sharding = jax.typeof(states).sharding
    rows = None if sharding.mesh.empty else NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    return unit.noise(unrolled(key), (len(states), units), dtype, out_sharding=rows)


@jax.jit
def _clamped_chain(machine: RBM, params: Params, v: Array, missing: Array, key: Array, steps: ArrayLike) -> Array:
    def step(i: ArrayLike, x: Array) -> Array:
        return jnp.where(missing, machine.transition(params, x, jax.random.fold_in(unrolled(key), i)), v)

    return jax.lax.fori_loop(0, steps, step, v)


@partial(jax.jit, static_argnums=1)
def _log_sum_over_layer(machine: RBM, side: int, params: Params) -> Array:
    unit, layer = machine._layer(side, params)
    free_energy = partial(machine._free_energy, "log_partition", side, params)
    return log_sum_over_states(free_energy, unit.values or (), len(layer["loc"]))


def log_sum_over_states(energy: Callable[[Array], Array], values: tuple[float, ...], units: int) -> Array:
    """log Σ exp(-energy) over all states of `units` units with these values, computed in blocks."""
    q = len(values)
    count = q**units
    block = min(count, _BLOCK)

    def log_sum(numbers: Array) -> Array:
        digits = numbers[:, None] // q ** jnp.arange(units)[None] % q
        return logsumexp(-energy(jnp.asarray(values)[digits]), where=numbers < count)

    numbers = jnp.arange(-(-count // block) * block).reshape(-1, block)
    return logsumexp(jax.lax.map(log_sum, numbers))
