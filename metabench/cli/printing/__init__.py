"""What the command line prints: :mod:`.terminal` has the pieces, the others are about one thing."""
