"""Evaluation: accuracy retention and prefill speed of token selection, measured side by side."""
