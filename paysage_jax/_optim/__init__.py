"""Optimizers, schedules, and transformations before, after and around optimizers."""
