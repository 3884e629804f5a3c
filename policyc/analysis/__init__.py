"""Questions put to a plan: what its tests say, which rules decide, what no test would miss."""
