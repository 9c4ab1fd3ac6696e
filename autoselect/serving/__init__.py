"""Selectors in vLLM: a plug-in for the engine, and the command `autoselect serve`."""

BLOCK = "autoselect"
"""The name of the plug-in, and of its block in a model's configuration."""
