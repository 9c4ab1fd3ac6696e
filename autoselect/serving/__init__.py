"""Selectors in vLLM: a plug-in for the engine, and the command `autoselect serve`."""
