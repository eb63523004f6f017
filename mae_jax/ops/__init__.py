"""Pure array functions, without Flax modules or configurations."""
