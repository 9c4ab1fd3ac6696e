"""Figures of a report, drawn with matplotlib's object interface; each function returns a figure."""
