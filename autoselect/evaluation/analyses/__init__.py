"""Analyses beside the accuracy table; figures 3, 4 and 5 of the paper (arXiv 2603.07135)."""
