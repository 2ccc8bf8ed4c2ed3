"""Pytrees, trees of arrays, batches and devices: what everything else is made of."""
