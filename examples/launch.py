"""Start a program as several processes on this machine, as `srun` or `mpirun` do on a cluster.

    python examples/launch.py --processes 2 examples/data_parallel.py --devices 1

Each process gets JAX_COORDINATOR_ADDRESS, WORLD_SIZE and RANK. If one fails, all are stopped.
"""

import argparse
import os
import socket
import subprocess
import sys
import time


def main(argv=None):
    """Start the processes and wait; exit with the status of the first one that fails."""
    parser = argparse.ArgumentParser(description="Start a program as several processes.")
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a Python program and its arguments")
    options = parser.parse_args(argv)
    if options.processes < 1 or not options.program:
        parser.error("expected a positive --processes and a program")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "WORLD_SIZE": str(options.processes)}
    running = [
        subprocess.Popen([sys.executable, *options.program], env=shared | {"RANK": str(rank)})
        for rank in range(options.processes)
    ]
    try:
        while not any(ended := [process.poll() or 0 for process in running]):
            if all(process.poll() == 0 for process in running):
                return 0
            time.sleep(0.1)
        return next(filter(None, ended))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
