"""Selectors that users load and attach, to prune the visual tokens of a stock model."""
