"""Default settings as TOML, found by `wsigen.system.shipped`: every default stands once, its reason beside it."""
