"""Studies: the same recipe with one thing changed at a time, and a table and plot of what came out.

`plan` says which runs there are, `run` makes them one after another, `report` compares them. The
command is `mae_jax.tools.study`.
"""
