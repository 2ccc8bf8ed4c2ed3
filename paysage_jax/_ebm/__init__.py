"""Energy-based models: two-phase gradients, sampling, likelihood."""
