"""Trackers of runs, one module each; the file name is the name that ``--log`` takes."""
