"""Faults for a real one-machine Slurm, and what judges the harness after each."""

from . import jobs, surroundings  # noqa: F401  # they enter their faults
from .registry import FAULTS as FAULTS
