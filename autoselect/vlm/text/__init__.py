"""Conversations as token ids: chat templates, placeholders, labels, and training batches."""
