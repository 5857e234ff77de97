"""Training patches for other tools' networks, cut from slides and their masks."""
