"""The work of each of the two processes in tests/test_processes.py: `processes.py FOLDER CASE...`.

Started by examples/launch.py. Each writes what came of a case as "CASE RANK.txt"; process 0 also the numbers.
"""

import os
import sys
from pathlib import Path

import jax

RANK, FOLDER = int(os.environ.get("RANK", 0)), Path(sys.argv[1])


def train(case):
    """A run, with the arguments changed by the case."""
    from jax.sharding import NamedSharding, PartitionSpec

    import paysage_jax as pj
    from tests import test_sharding as one

    sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
    if case == "a loader with the same rows on both":
        sharding = NamedSharding(jax.make_mesh((2, 2), ("model", "data")), PartitionSpec("data"))
    params, images, options = one.PARAMS, one.IMAGES, {"epochs": one.EPOCHS, "key": one.KEY, "sharding": sharding}
    optimizer = pj.shard_state(pj.adam(0.01), sharding)
    half, pcd = one.BATCH // 2, one.PCD

    def own_rows(epoch):
        for number in range(len(images) // one.BATCH - (case == "fewer batches" and RANK == 1)):
            rows = images[number * one.BATCH + RANK * half :][:half]
            if case == "a loader that raises" and (number, RANK) == (3, 1):
                raise OSError("the disk is gone")
            yield rows[:, :20] if case == "other shapes" and (number, RANK) == (3, 1) else rows

    in_memory = "loader" not in case and case not in ("fewer batches", "other shapes")
    data = images if in_memory else own_rows
    if in_memory:
        options |= {"batch_size": one.BATCH, "shards": one.SHARDS}
    if case == "an argument wrong on one" and RANK == 1:
        options["batch_size"] = 1000
    if case == "other steps" and RANK == 1:
        pcd = pj.persistent_contrastive_divergence(pj.rbm.RBM(), steps=2)
    if case == "checkpoints on one" and RANK == 1:
        options["checkpoints"] = FOLDER / "one"
    if case == "no sharding":
        del options["sharding"]
    if case == "other shards" and RANK == 1:
        options["shards"] = 4
    if case == "other data" and RANK == 1:
        data = images[::-1]
    if case == "other parameters" and RANK == 1:
        params = jax.tree.map(lambda x: x + 1, params)
    if case == "a callback that stops":
        options["callback"] = lambda result: (FOLDER / f"called {RANK}").touch() or int(result.epochs_done) == 3
    if case == "a callback that raises":
        options["callback"] = lambda result: 1 / 0
    if case == "killed":
        options |= {"checkpoints": FOLDER / "run", "epochs": 60}
    result = pj.fit(params, optimizer, pcd, data, **options)
    return result, f"{pj.Outcome(result.outcome).name} {int(result.epochs_done)}"


def main():
    """Train, and print the result or the error."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather, sync_global_devices

    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(num_processes=2, process_id=RANK, heartbeat_timeout_seconds=10)
    for case in sys.argv[2:]:
        try:
            result, said = train(case)
            chains = process_allgather(result.estimator_state, tiled=True)
            if RANK == 0:
                leaves = {f"params {i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(result.params))}
                np.savez(FOLDER / f"{case}.npz", chains=chains, **leaves)
        except Exception as error:
            said = f"{type(error).__name__} {error}"
        (FOLDER / f"{case} {RANK}.txt").write_text(said)
        sync_global_devices(case)  # neither ends before the other has said its own


if __name__ == "__main__":
    main()
