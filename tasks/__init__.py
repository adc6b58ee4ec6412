"""Tasks: one module a task, file name = registered name; what they share is in ``data``, ``models``
and ``families``."""
