"""How a hypergradient is computed: by unrolling, implicitly, by a best response, by search."""
