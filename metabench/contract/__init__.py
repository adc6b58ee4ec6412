"""The contract between a task, a method and an inner solver, and derivatives of it."""
