"""Default settings as TOML, read by ``wsigen.config``: every default lives here once, its reason beside it."""
