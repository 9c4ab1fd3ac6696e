"""The small reference VLM and its data: what makes everything run without a model hub."""
