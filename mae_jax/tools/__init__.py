"""All commands except training: `python -m mae_jax.tools.<name> --help`."""
