"""Learning-rate schedules, parameter groups and optax chains."""
