"""Suites on Slurm: the store says what is done, Slurm only whether somebody still works on it."""
