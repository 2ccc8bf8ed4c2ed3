"""Energy-based models: gradients of two phases, sampling, likelihood."""
