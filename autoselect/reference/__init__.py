"""A small reference VLM and its data, so that everything runs without downloads."""
