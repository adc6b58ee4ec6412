"""The processes that cells run in, and the launcher that gives them cells."""
