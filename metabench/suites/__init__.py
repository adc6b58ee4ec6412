"""Suite files: how they are read, and the cells that they plan."""
