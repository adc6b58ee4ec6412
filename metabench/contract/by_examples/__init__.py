"""Losses of single examples: in closed form, their spectral risks, solvers that step by them."""
