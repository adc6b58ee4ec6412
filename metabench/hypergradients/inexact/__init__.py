"""Hypergradients only as accurate as asked, and what is known of their error: HOAG, MAID."""
