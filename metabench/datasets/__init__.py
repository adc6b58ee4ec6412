"""Data sets: where they are on this machine, and how they are fetched and verified."""
