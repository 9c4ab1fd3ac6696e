"""An empty project folder with an MLflow store for every test of the tracker."""

import pytest

from autoselect.tracking import delivery
from tests.tracking.runs import Outage


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch, empty_store):
    """Return an empty project folder as current folder, with the default store."""
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(delivery, "DELIVERY_SECONDS", 3600.0)  # only when asked to
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def outage(monkeypatch):
    monkeypatch.setattr("autoselect.tracking.delivery.RETRY_SECONDS", 0.0)
    return Outage(monkeypatch)
