"""Benchmarks of the train step, its compilation and the input pipeline: `mae_jax.tools.bench`."""
