"""The Potts model: a Boltzmann machine of categorical units with pairwise couplings and no hidden units."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from .._core.pytree import Pytree, check_count, count
from .._core.threefry import unrolled
from .._core.types import Batch, Params
from .._ebm.annealing import Annealing, linear_path
from .._ebm.domain import mean_over_rows
from .._ebm.phases import weighted
from .machine import MOST_STATES, States, in_form_of, log_sum_over_states, mask_for, noise_for, widen
from .units import Categorical


def _most_numbers() -> int:
    """The size of a block of one-hot states: small enough for the caches of a CPU, or for the memory of a GPU."""
    return 2**20 if jax.default_backend() == "cpu" else 2**25


class PottsModel(Pytree):
    """A Potts model: n sites, each in one of q states, with a coupling for every pair of sites and no hidden units.

        p(v) = exp(-E(v)) / Z,   E(v) = -Σᵢ hᵢ(vᵢ) - Σ_{i<j} Jᵢⱼ(vᵢ, vⱼ)

    The parameters are {"fields": h, "couplings": J} of shapes (n, q) and (n (n - 1) / 2, q, q). J has one matrix for
    each pair i < j, in the order of `i, j = np.triu_indices(n, 1)`, so that every coupling is a single parameter and a
    penalty counts it once. To convert a symmetric array C of shape (n, q, n, q), use `C[i, :, j]`.

    States are integers from 0 to q - 1 of shape (rows, n), or one-hot of shape (rows, n, q). Chains have the same
    form as the data. The model works wherever `RBM` does: in estimators, metrics, annealing and tracking. If parameters
    are bfloat16 or float16, energies and probabilities are computed in float32.

    Args:
        states: the number q of states, a positive integer.

    >>> import paysage_jax as pj
    >>> v, key = jnp.array([[0, 1, 2], [2, 1, 0]]), jax.random.key(0)
    >>> model = PottsModel(3)
    >>> estimator = pj.persistent_contrastive_divergence(model, num_chains=10)
    >>> optimizer = pj.chain(pj.sgd(0.1), pj.project(model.zero_sum))
    >>> result = pj.fit(model.init(v), optimizer, estimator, v, epochs=2, batch_size=2, key=key)
    >>> result.params["couplings"].shape
    (3, 3, 3)
    """

    states: int = count(static=True)
    sample_hidden = None  # data are complete states
    integer_states = True

    @property
    def visible(self) -> Categorical:
        """The kind of unit at every site."""
        return Categorical(self.states)

    def check_states(self, name: str, v: Batch) -> None:
        """Raise a TypeError or ValueError that names row and column, if v is not a state of the model."""
        self.visible.check(name, v)

    def init(self, data: Batch) -> Params:
        """Create parameters of independent sites that match the distribution of the data at each site.

        Args:
            data: states of shape (rows, n) or (rows, n, q), or `Weighted`.

        Raises:
            TypeError, ValueError: for values that are not states. The message names row and column.
        """
        fields = self.visible.start("init", self.visible.rows("init: data", data))["loc"]
        sites = len(fields)
        return {"fields": fields, "couplings": jnp.zeros((sites * (sites - 1) // 2, self.states, self.states))}

    # --- the energy ----------------------------------------------------------------------------------

    def energy(self, params: Params, v: States) -> Array:
        """E(v) of every row of v."""
        params, v = self._checked("energy", params, v)
        matrix = _matrix(params)

        def of_rows(v: Array) -> Array:
            x = self._one_hot(params, v)
            return -jnp.sum(x * (params["fields"][None] + _inputs(params, matrix, x)), axis=(1, 2)) / 2

        return _in_blocks(of_rows, params["fields"].size, v)

    def pseudo_likelihood_loss(self, params: Params, batch: Batch) -> Array:
        """The negative pseudo-log-likelihood (Besag, 1975), a loss for `loss_gradient`.

            -1/rows Σ w Σᵢ log p(vᵢ | all other sites)

        Args:
            params: the parameters of the model.
            batch: rows, or `Weighted` rows with weights w of mean 1, as `fit` passes them. For values that are
                not states the loss and its gradient are NaN, because a traced function cannot raise an error.
        """
        v, weights = weighted(batch)
        params, v = self._checked("pseudo_likelihood_loss", params, v)
        are_states = jnp.all(jnp.sum(self._one_hot(params, v), axis=2) == 1)
        # NaN multiplies parameters and not log p, whose gradient would be 0 times NaN: XLA may simplify that to 0.
        params = params | {"fields": params["fields"] * jnp.where(are_states, 1, jnp.nan)}
        matrix = _matrix(params)

        def of_rows(v: Array) -> Array:
            x = self._one_hot(params, v)
            return jnp.sum(x * jax.nn.log_softmax(_inputs(params, matrix, x), axis=2), axis=(1, 2))

        log_p = _in_blocks(of_rows, params["fields"].size, v)
        return -jnp.mean(log_p if weights is None else jnp.asarray(weights, log_p.dtype) * log_p)

    def _one_hot(self, params: Params, v: Array) -> Array:
        return jax.vmap(lambda v: self.visible.statistic({"loc": params["fields"]}, v))(v)

    def _checked(self, name: str, params: Params, v: States) -> tuple[Params, Array]:
        """Parameters in at least float32, and states as an array. Raises ValueError for other shapes."""
        fields, couplings = (jnp.shape(params[leaf]) for leaf in ("fields", "couplings"))
        pairs = fields[0] * (fields[0] - 1) // 2
        if fields[1:] != (self.states,) or couplings != (pairs, self.states, self.states):
            raise ValueError(
                f"{name}: params: expected fields (n, {self.states}) and couplings (n (n - 1) / 2, {self.states}, "
                f"{self.states}), got {fields} and {couplings}"
            )
        shape = getattr(v, "shape", None)
        if shape is None or shape[1:] not in (fields[:1], fields):
            got = f"a {type(v).__name__}" if shape is None else f"shape {shape}"
            raise ValueError(f"{name}: expected states (rows, {fields[0]}) as in params, got {got}")
        return widen(params), jnp.asarray(v)

    # --- sampling ------------------------------------------------------------------------------------

    def transition(self, params: Params, v: States, key: Array) -> Array:
        """One sweep of Gibbs sampling: every site is sampled given all other sites, in a random order.

        All rows use the same order. The kernel leaves p(v) invariant, and it is reversible, because an order and its
        reverse are equally likely.
        """
        return self._sweep("transition", params, v, None, key)

    def impute(self, params: Params, v: States, missing: States, key: Array, steps: int = 100) -> Array:
        """Sample the missing sites of every row given its known sites, by Gibbs sampling with the known sites clamped.

        The chain starts from independent sites. The mean of many samples estimates the conditional mean.

        Args:
            params: the parameters of the model.
            v: states of shape (rows, n) or (rows, n, q); values at missing sites are ignored.
            missing: bools of shape (rows, n), True where a site is missing.
            key: a PRNG key.
            steps: the number of sweeps, a positive integer.

        Raises:
            TypeError, ValueError: for values that are not states, naming row and column, and for a mask of another
                shape.
        """
        check_count("impute: steps", steps)
        self._checked("impute", params, v)
        mask = mask_for("impute: missing", missing, v)
        first_key, key = jax.random.split(key)
        drawn = in_form_of(v, self._independent(params["fields"], len(v), first_key)).astype(jnp.result_type(v))
        start = self.visible.rows("impute: v", jnp.where(mask, drawn, jnp.asarray(v))).v
        return _clamped_sweeps(self, params, start, mask.reshape(mask.shape[:2]), key, steps)

    def _sweep(self, name: str, params: Params, v: States, free: Array | None, key: Array) -> Array:
        """Sample each site given all other sites, in the rows where `free` (rows, n) is True; None means all rows."""
        given, (params, v) = v, self._checked(name, params, v)
        fields, matrix = params["fields"], _matrix(params)
        order_key, key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(fields))
        noise = noise_for(self.visible, key, v, len(fields), fields.dtype)

        def of_rows(v: Array, noise: Array, *free: Array) -> Array:
            def draw(x: Array, site: tuple[Array, ...]) -> tuple[Array, None]:
                i, noise, *is_free = site
                # Transpose the result: with a transposed factor the product would be slow.
                inputs = (fields[i][:, None] + jnp.tensordot(matrix[i], x, 2)).T
                new = self.visible.draw({"loc": inputs}, jnp.zeros_like(inputs), noise)
                new = (new[None] == jnp.arange(self.states, dtype=new.dtype)[:, None]).astype(x.dtype)
                for mask in is_free:
                    new = jnp.where(mask[None], new, x[i])
                return jax.lax.dynamic_update_index_in_dim(x, new, i, 0), None

            # With rows as the last axis, products and draws are fast.
            x = jnp.moveaxis(self._one_hot(params, v), 0, 2)
            x, _ = jax.lax.scan(draw, x, (order, noise.T, *(mask.T[order] for mask in free)))
            return jnp.argmax(x, axis=1).T

        masks = () if free is None else (free,)
        drawn = in_form_of(given, _in_blocks(of_rows, fields.size, v, noise, *masks))
        return drawn.astype(jnp.result_type(given))

    def _independent(self, fields: Array, rows: int, key: Array) -> Array:
        """Sample states without couplings."""
        fields = widen(fields)
        noise = self.visible.noise(unrolled(key), (rows, len(fields)), fields.dtype)
        return jax.vmap(lambda noise: self.visible.draw({"loc": fields}, jnp.zeros_like(fields), noise))(noise)

    # --- the gauge -----------------------------------------------------------------------------------

    def zero_sum(self, params: Params) -> Params:
        """Project onto the zero-sum gauge: the parameters of each site sum to 0 over its states, and p is unchanged.

            Jᵢⱼ(a, b) -= Jᵢⱼ(a, ·) + Jᵢⱼ(·, b) - Jᵢⱼ(·, ·),   hᵢ(a) += Σⱼ Jᵢⱼ(a, ·),   hᵢ(a) -= hᵢ(·)

        A dot denotes the mean over states. Among all parameters with the same p, these have the smallest Σ J², so a
        penalty Σ J² is compatible with the gauge. Energies change by a constant (Ekeberg et al., 2013).

        >>> import paysage_jax as pj
        >>> decay = pj.add_decayed_weights(0.01, where=lambda path: path == "couplings")
        >>> optimizer = pj.chain(decay, pj.adam(0.01), pj.project(PottsModel(5).zero_sum))
        """
        fields, couplings = params["fields"], params["couplings"]
        first, second = np.triu_indices(len(fields), 1)
        of_first, of_second = jnp.mean(couplings, axis=2), jnp.mean(couplings, axis=1)
        of_both = jnp.mean(of_first, axis=1, keepdims=True)
        couplings = couplings - of_first[:, :, None] - of_second[:, None, :] + of_both[:, :, None]
        fields = fields.at[first].add(of_first).at[second].add(of_second)
        return {"fields": fields - jnp.mean(fields, axis=1, keepdims=True), "couplings": couplings}

    # --- likelihood ----------------------------------------------------------------------------------

    def log_likelihood(self, params: Params, v: Batch, log_z: ArrayLike | None = None) -> Array:
        """The mean of log p(v) over the rows of v, in nats.

        Args:
            params: the parameters of the model.
            v: states of shape (rows, n) or (rows, n, q), or `Weighted` for a weighted mean.
            log_z: log Z of the model. None computes the exact value with `log_partition`.

        Raises:
            TypeError, ValueError: for values that are not states, naming row and column, and for a model that is too
                large for `log_partition`.
        """
        data = self.visible.rows("log_likelihood: v", v)
        log_z = self.log_partition(params) if log_z is None else log_z
        return -mean_over_rows(self.energy(params, data.v), data.weights) - jnp.asarray(log_z)

    def log_partition(self, params: Params) -> Array:
        """Compute log Z exactly, as a sum over all states of the model.

        Raises:
            ValueError: for more than 2**20 states.
        """
        if self.states ** len(params["fields"]) > MOST_STATES:
            raise ValueError(
                f"log_partition: {len(params['fields'])} sites of {self.states} states are too many; expected at most "
                f"{MOST_STATES} states of the model: use annealed_importance_sampling"
            )
        return _log_sum(self, params)

    def annealing(self, params: Params, data: Batch | None, num_chains: int, key: Array) -> Annealing:
        """Construct an annealing path from independent sites to this model.

            h(β) = (1 - β) h(data) + β h,   J(β) = β J

        With the fields h(data), independent sites match the data.

        Args:
            params: the parameters at the end of the path.
            data: rows or `Weighted`, as for `init`. With None, all states start equally likely. That path needs more
                steps, but finds modes far from the data.
            num_chains: the number of initial states.
            key: a PRNG key.

        Raises:
            TypeError, ValueError: for data that `init` rejects, or whose number of sites does not match the parameters.
        """
        fields = jnp.asarray(params["fields"])
        if data is None:
            first = jnp.zeros_like(fields)
        else:
            rows = self.visible.rows("annealing: data", data)
            self._checked("annealing: data", params, rows.v)
            first = self.visible.start("annealing", rows)["loc"].astype(fields.dtype)
        start = {"fields": first, "couplings": jnp.zeros_like(params["couplings"])}
        log_z = jnp.sum(logsumexp(widen(first), axis=1))
        return Annealing(linear_path(start, params), self._independent(first, num_chains, key), log_z)


def _matrix(params: Params) -> Array:
    """All couplings as a symmetric array (n, q, n, q), with zeros between the states of one site."""
    n, couplings = len(params["fields"]), jnp.asarray(params["couplings"])
    first, second = np.triu_indices(n, 1)
    pair = np.zeros((n, n), np.int32)
    pair[first, second] = pair[second, first] = np.arange(len(first))
    i, j = np.ogrid[:n, :n]
    blocks = couplings[pair] if n > 1 else jnp.zeros((n, n, *couplings.shape[1:]), couplings.dtype)
    blocks = jnp.where((i < j)[..., None, None], blocks, jnp.swapaxes(blocks, 2, 3))
    return jnp.where((i == j)[..., None, None], 0, blocks).transpose(0, 2, 1, 3)


def _inputs(params: Params, matrix: Array, x: Array) -> Array:
    """hᵢ(a) + Σⱼ Jᵢⱼ(a, vⱼ), the contribution to -E of state a at site i given all other sites, for one-hot rows x."""
    return params["fields"][None] + jnp.tensordot(x, matrix, 2)


def _in_blocks(function: Callable[..., Array], numbers: int, *rows: Array) -> Array:
    """function(*rows). Rows hold `numbers` numbers each, and are processed in blocks if all would need much memory."""
    size, every = max(1, _most_numbers() // numbers), len(rows[0])
    if every <= size or not jax.typeof(rows[0]).sharding.mesh.empty:  # sharded rows stay on their devices
        return function(*rows)
    whole = every - every % size
    blocks = [x[:whole].reshape(-1, size, *x.shape[1:]) for x in rows]
    of_blocks = jax.lax.map(jax.checkpoint(lambda block: function(*block)), blocks)
    results = of_blocks.reshape(whole, *of_blocks.shape[2:])
    return results if whole == every else jnp.concatenate([results, function(*[x[whole:] for x in rows])])


@jax.jit
def _clamped_sweeps(model: PottsModel, params: Params, v: Array, free: Array, key: Array, steps: ArrayLike) -> Array:
    def step(i: ArrayLike, v: Array) -> Array:
        return model._sweep("impute", params, v, free, jax.random.fold_in(unrolled(key), i))

    return jax.lax.fori_loop(0, steps, step, v)


@jax.jit
def _log_sum(model: PottsModel, params: Params) -> Array:
    return log_sum_over_states(partial(model.energy, params), model.visible.values, len(params["fields"]))
