"""Search: lam by inner trainings and their outer losses alone."""
