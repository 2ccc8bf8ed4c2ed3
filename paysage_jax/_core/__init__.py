"""Pytrees, trees of arrays, batches and devices: the foundation of all other modules."""
