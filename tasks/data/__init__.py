"""Readers of data that tasks share."""
