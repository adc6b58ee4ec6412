"""Single examples: their losses in closed form, spectral risks of these, solvers that step by them,
and weights that differ from example to example."""
