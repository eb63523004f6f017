"""What `mae_jax.tools.bench` measures: the train step, its compilation, and the input pipeline."""
