"""Studies: runs of one recipe with one thing changed at a time, compared in a table and a plot.

`plan` lists the runs, `run` runs them one after another, and `report` compares them. The command is
`mae_jax.tools.study`.
"""
