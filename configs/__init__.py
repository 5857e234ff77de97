"""Default settings as TOML, read by :mod:`wsigen.config`: every default lives here once, its reason beside it."""
