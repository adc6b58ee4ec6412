"""What runs leave behind: records, the store that holds them, leases on its cells."""
