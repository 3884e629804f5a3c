"""From policy text to a plan: resolve names, check legality and overlap, lower to what the runtime reads."""
