"""An attempt at a cell: its checkpoints, what a step must not do, the record where it fails."""
