"""Methods: one module a method, file name = registered name."""
