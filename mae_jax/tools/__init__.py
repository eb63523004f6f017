"""Commands beside training: `python -m mae_jax.tools.<name> --help`."""
