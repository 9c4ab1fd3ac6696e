"""Experiment tracking on MLflow, which nothing outside this package imports."""

from autoselect.tracking.models_and_data import Data
from autoselect.tracking.tracker import Tracker

__all__ = ["Data", "Tracker"]
