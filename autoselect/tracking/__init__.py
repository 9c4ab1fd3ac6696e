"""Experiment tracking on MLflow, which nothing outside this package imports."""

from autoselect.tracking.tracker import Tracker

__all__ = ["Tracker"]
