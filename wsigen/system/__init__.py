"""The machine: devices, cores, caches, files."""
