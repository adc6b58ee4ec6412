"""Cluster profiles, one TOML each, and a Slurm for machines that have none."""
