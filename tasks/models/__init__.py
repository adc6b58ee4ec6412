"""Networks and losses that tasks share."""
