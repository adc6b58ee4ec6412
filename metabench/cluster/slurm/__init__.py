"""Slurm itself: its commands, the script of a job, and what it says of jobs afterwards."""
