"""What records say: results by row and column, statistics, verdicts on paper claims."""
