"""HTML pages: the report of a suite, the leaderboard of an arena."""
