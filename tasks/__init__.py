"""Task families: one module a task, file name = registered name; shared parts in ``_*.py``."""
