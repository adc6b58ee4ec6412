"""Cells run on this machine: the loop of a cell, its processes, the launcher."""
