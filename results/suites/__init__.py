"""Suites: TOML files, one a paper table, with the published numbers beside what to run."""
