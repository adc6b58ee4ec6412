"""The verbs of arenas: play one, show where all stand, rank one method among the baselines."""
