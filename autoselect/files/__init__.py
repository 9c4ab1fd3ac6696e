"""Writing files that are complete or absent, whatever happens meanwhile."""
