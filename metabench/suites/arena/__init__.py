"""An arena as its file has it, who takes part in it, and the scores that ship with it."""
