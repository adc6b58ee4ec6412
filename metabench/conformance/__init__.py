"""The checks that a task or a method has to pass."""
