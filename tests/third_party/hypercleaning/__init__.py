"""A task and a method for metabench."""
