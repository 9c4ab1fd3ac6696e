"""The `autoselect` command and the demo."""
