"""How benchmarks take their turns, count and read records; the processes that are timed."""
