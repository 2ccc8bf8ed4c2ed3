"""Runs: the step, epochs, sources of data, and what happens on the host."""
