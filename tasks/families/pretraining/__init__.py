"""Tasks of two stages: what a network is trained on before it is tuned."""
