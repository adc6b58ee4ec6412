"""What stands below a table: how each number came about, and what it cannot say."""
