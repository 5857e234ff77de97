"""Models as users meet them: their configuration, their stain styles, and the registry of those that ship."""
