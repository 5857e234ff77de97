"""From masks to slide files."""
