"""The stain that is asked for against the stain that is painted, and a response to mend the difference."""
