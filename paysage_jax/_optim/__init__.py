"""Optimizers, schedules, and what goes before, after and around them."""
