"""Tasks of many small inner problems: few-shot classification, and learned starts."""
