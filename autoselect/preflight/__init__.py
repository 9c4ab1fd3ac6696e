"""Checks (`autoselect doctor`) and estimates (`autoselect plan`) before a training run."""
