"""Hypergradients along chains of Langevin steps: SGLD."""
