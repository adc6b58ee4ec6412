"""Figures: curves, costs, profiles, ranks."""
