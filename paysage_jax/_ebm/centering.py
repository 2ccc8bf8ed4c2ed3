"""The centred gradient of Boltzmann machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._core.pytree import Number, converted, function, number, static
from .._core.trees import by_path, moment_dtype, zeros_like_moments
from .._core.types import Params, State, Statistics, Tree, Updates
from .._optim.transformation import BEFORE, Transformation, next_step

_HINT = "pass `connections=` to list the layers that each weight connects"


class Connection(NamedTuple):
    """The paths of a weight matrix (n, m) and of the biases (n,) and (m,) of the two layers that it connects.

    The biases may have more axes, for example (n, q) for categories. The matrix then has the axes of both, (n, q, m).
    """

    weight: str
    left: str
    right: str


class CenterState(NamedTuple):
    """step: the number of updates so far (int32); offsets: the running mean activation of each layer, by bias path."""

    step: jax.Array
    offsets: dict[str, jax.Array]


def _as_connections(_: str, connections: Iterable[Iterable[str]] | None) -> tuple[Connection, ...] | None:
    return None if connections is None else tuple(Connection(*connection) for connection in connections)


class center(Transformation):
    """Center the gradient of a Boltzmann machine (Melchior, Fischer & Wiskott, JMLR 17(99), 2016). Chain it first.

    For two layers with biases b and c and offsets μ and λ, connected by W (n, m):

        dW_c = dW - μ dcᵀ - db λᵀ
        db_c = db - dW_c λ
        dc_c = dc - dW_cᵀ μ                       (a layer with two connections subtracts both terms)
        μ = decay μ + (1 - decay) a               (a itself at the first step)

    The activations a are the means of the statistics that W couples. By default they are minus the derivative of the
    mean energy with respect to the bias, which is valid if b appears in the energy only as -b·t(v). For every kind of
    unit, use `rbm.RBM.activations`. The derivatives come from the extra argument `statistics` of a two-phase estimator
    (`PhaseStatistics`).

    Use it with `sgd` or `momentum`. `adam` rescales the centred gradient element by element, and some runs then reach
    a much lower likelihood.

    Args:
        decay: the decay of the offsets, in [0, 1).
        enhanced: whether to average the activations over data and model (as Cho, Raiko & Ilin, 2013, with decay = 0);
            otherwise they are means over the data.
        connections: (weight, left bias, right bias) paths. By default weights/i/matrix connects layers/i/loc and
            layers/i+1/loc.
        activations: a function (params, gradient of a mean energy) -> tree with the means of t(v) in place of the
            biases.

    Raises:
        ValueError: if a path or a shape does not fit, or if `statistics` are missing.
    """

    _stage = BEFORE
    state_type = CenterState
    decay: Number = number("[0, 1)", default=0.99)
    enhanced: bool = static(default=False)
    connections: Sequence[Connection] | None = converted(_as_connections, default=None, static=True)
    activations: Callable[[Params, Params], Tree] | None = function(default=None)

    def init(self, params: Params) -> State:
        self.check_for(params)
        leaves = by_path(params)
        biases = sorted({bias for _, left, right in self._connections(leaves) for bias in (left, right)})
        return CenterState(jnp.zeros((), jnp.int32), zeros_like_moments({bias: leaves[bias] for bias in biases}))

    def apply(
        self, updates: Updates, state: State, params: Params | None, *, statistics: Statistics = None, **extra: object
    ) -> tuple[Updates, State]:
        if not hasattr(statistics, "data_gradient"):
            kind = type(statistics).__name__
            raise ValueError(f"center: needs update(..., statistics=...) from a two-phase estimator, got {kind}")
        given = by_path(updates)
        connections = self._connections(given)
        joined = {path for connection in connections for path in connection}
        d = {path: jnp.asarray(given[path], moment_dtype(jnp.result_type(given[path]))) for path in joined}
        offsets = self._next_offsets(state, params, statistics)

        centred = dict(d)
        for weight, left, right in connections:
            mu, lam = offsets[left], offsets[right]
            centred[weight] = d[weight] - jnp.tensordot(mu, d[right], 0) - jnp.tensordot(d[left], lam, 0)
        for weight, left, right in connections:
            mu, lam = offsets[left], offsets[right]
            centred[left] = centred[left] - jnp.tensordot(centred[weight], lam, lam.ndim, precision="highest")
            centred[right] = centred[right] - jnp.tensordot(mu, centred[weight], mu.ndim, precision="highest")

        new = [centred[path].astype(jnp.result_type(g)) if path in joined else g for path, g in given.items()]
        return jax.tree.structure(updates).unflatten(new), CenterState(next_step(state.step), offsets)

    def _next_offsets(self, state, params, statistics):
        on_data = self._activations(params, statistics.data_gradient)
        on_model = self._activations(params, statistics.model_gradient) if self.enhanced else on_data

        def running_mean(bias, offset):
            activation = (on_data[bias] + on_model[bias]) / 2 if self.enhanced else on_data[bias]
            activation, decay = jnp.asarray(activation, offset.dtype), jnp.asarray(self.decay, offset.dtype)
            return jnp.where(state.step == 0, activation, decay * offset + (1 - decay) * activation)

        return {bias: running_mean(bias, offset) for bias, offset in state.offsets.items()}

    def _activations(self, params, gradient):
        """Activations by path, of which only those of biases are meaningful."""
        if self.activations is None:
            return by_path(jax.tree.map(jnp.negative, gradient))
        if params is None:
            raise ValueError("center: activations= needs the parameters: update(updates, state, params, ...)")
        return by_path(self.activations(params, gradient))

    def _connections(self, leaves):
        connections = self.connections
        if connections is None:
            count = sum(path.startswith("weights/") for path in leaves)
            layers = [f"layers/{i}/loc" for i in range(count + 1)]
            connections = [Connection(f"weights/{i}/matrix", *layers[i : i + 2]) for i in range(count)]
        if not connections:
            raise ValueError(f"center: no weights among the leaves {list(leaves)}; {_HINT}")
        for connection in connections:
            for path in connection:
                if path not in leaves:
                    raise ValueError(f"center: no leaf {path} among {list(leaves)}; {_HINT}")
            biases = [jnp.shape(leaves[bias]) for bias in connection[1:]]
            expected = biases[0] + biases[1]
            if jnp.shape(leaves[connection.weight]) != expected or () in biases:
                raise ValueError(
                    f"center: {connection.weight} of shape {jnp.shape(leaves[connection.weight])} does not connect "
                    f"{connection.left} and {connection.right}, of shapes {expected}"
                )
        return connections
