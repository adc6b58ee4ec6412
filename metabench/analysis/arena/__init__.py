"""What an arena says of methods: scores, costs, pairs, ranks of a track; nothing is drawn here."""
