"""Figures and tables of an arena, track by track."""
