"""Answers of a model under each method and budget."""
