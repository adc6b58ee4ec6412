"""Convolutional networks with derivatives written by hand."""
