"""Everything about one tool call: its contract, its door, its record, its cost."""
