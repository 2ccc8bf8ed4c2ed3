"""The ground state of a quantum Ising chain: our optimizers in NetKet, on complex parameters.

    pip install -e '.[integrations]'
    python examples/netket_ising.py

The Hamiltonian is H = -Σ σᶻσᶻ' - Σ σˣ on a ring of spins, at the critical point. The wave function is NetKet's
restricted Boltzmann machine with complex parameters. NetKet samples it and estimates the gradient of the energy, with
and without preconditioning (stochastic reconfiguration, SR). An epoch is one set of samples and one step.

Prints the excess of the final energy over the exact energy, for our optimizers and for NetKet's. Plots the energy by
epoch, and the final wave function against the exact one. With complex64 the parameters of the two Adams differ
slightly, because a rounding error sometimes changes which sample is accepted.
"""

import netket as nk
import numpy as np
import shared
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import paysage_jax as pj

SAMPLES = 512
OPTIMIZERS = {  # ours, NetKet's, and the preconditioner of the gradient
    "Adam": (pj.adam(0.01), nk.optimizer.Adam(0.01), nk.optimizer.identity_preconditioner),
    "SGD with SR": (pj.sgd(0.05), nk.optimizer.Sgd(0.05), nk.optimizer.SR(diag_shift=0.01, holomorphic=True)),
}


def make_hamiltonian(spins):
    """The Hamiltonian H as a NetKet operator."""
    space = nk.hilbert.Spin(s=0.5, N=spins)
    return nk.operator.IsingJax(hilbert=space, graph=nk.graph.Chain(spins, pbc=True), h=1.0, J=-1.0)  # pyright: ignore[reportCallIssue]


def train(hamiltonian, optimizer, preconditioner, dtype, epochs, seed):
    """NetKet's variational state after training, and the estimated energy of each epoch."""
    sampler = nk.sampler.MetropolisLocal(hamiltonian.hilbert, n_chains=16)
    model = nk.models.RBM(alpha=1, param_dtype=dtype)
    state = nk.vqs.MCState(sampler, model, n_samples=SAMPLES, seed=seed, sampler_seed=seed)
    driver = nk.driver.VMC(hamiltonian, optimizer, variational_state=state, preconditioner=preconditioner)
    log = nk.logging.RuntimeLog()
    driver.run(epochs, out=[log], show_progress=False)
    return state, np.real(log.data["Energy"]["Mean"])


def main(argv=None):
    """Diagonalize, train, print and plot."""
    parser = shared.make_parser(__doc__, 200, "netket_ising.png")
    parser.add_argument("--spins", type=int, default=8, help="of the ring")
    parser.add_argument("--dtype", choices=["complex64", "complex128"], default="complex128", help="of the parameters")
    options = shared.parse(parser, argv, spins=(3, 14))

    hamiltonian = make_hamiltonian(options.spins)
    matrix = hamiltonian.to_sparse()
    energies, vectors = nk.exact.lanczos_ed(hamiltonian, compute_eigenvectors=True)
    exact, ground = energies[0], np.abs(vectors[:, 0])
    print(f"exact energy of {options.spins} spins: {exact:.6f}. Relative excess of the state's energy:")

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curve, *waves = figure.subplots(1, 3)
    for color, axes, (name, (*optimizers, preconditioner)) in zip(("C0", "C1"), waves, OPTIMIZERS.items(), strict=True):
        above, parameters = [], []
        looks = {"ours": ("-", ".", color), "NetKet's": (":", "o", "black")}
        for (whose, (style, marker, ink)), optimizer in zip(looks.items(), optimizers, strict=True):
            run = hamiltonian, optimizer, preconditioner, options.dtype, options.epochs, options.seed
            state, estimates = train(*run)
            psi = np.asarray(state.to_array(), complex)
            energy = (psi.conj() @ (matrix @ psi)).real / np.linalg.norm(psi) ** 2
            above.append((energy - exact) / np.abs(exact))
            parameters.append(ravel_pytree(state.parameters)[0])
            curve.plot(1 + np.arange(options.epochs), estimates, style, color=ink, label=f"{name}, {whose}")
            axes.plot(ground, np.abs(psi), marker, color=ink, fillstyle="none", label=whose)
        difference = np.abs(parameters[0] - parameters[1]).max()
        print(f"{name:11}  ours {above[0]:.2e}   NetKet's {above[1]:.2e}   parameters differ by {difference:.0e}")
        axes.axline((1, 1), slope=1, color="C7", linewidth=1)
        limits = ground.min() / 2, 1
        axes.set(title=f"wave function, {name}", xlabel="exact amplitude", ylabel="amplitude of the state")
        axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1)
        axes.legend()
    curve.axhline(exact, color="C7", linewidth=1, label="exact")
    curve.set(title=f"energy, from {SAMPLES} samples", xlabel="epoch", ylabel="energy", box_aspect=1)
    curve.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
