"""Checks and estimates before a run starts: `autoselect doctor` and `autoselect plan`."""
