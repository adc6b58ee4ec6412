"""Published results, a folder each; an installed copy has the records of arenas alone."""
