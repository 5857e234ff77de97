"""A slide that is painted while it is viewed: one thread paints what the pages show."""
