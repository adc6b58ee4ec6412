"""What a run costs: limits of its budget, prices of counts, memory, what no clock counts."""
