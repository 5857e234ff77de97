"""Default settings as TOML, found by :mod:`wsigen.system.shipped`: every default stands once, its reason beside it."""
