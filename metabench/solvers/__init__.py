"""Inner solvers: one module a solver, file name = registered name."""
