"""Data sets as their owners release them: one reader each, and what turns them into labels.json."""
