"""How fast the package is beside its peers: `python -m benchmarks` from the root of the repository."""
