"""The verbs of metabench as functions."""
