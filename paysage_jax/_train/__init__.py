"""Training runs: the step, epochs, sources of data, and the work on the host."""
