"""Tests, and the faults that run as a command. A package: others may install a ``tests`` too."""
