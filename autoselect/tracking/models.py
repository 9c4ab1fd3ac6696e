"""Model folders that runs logged, by the addresses that MLflow gives them."""

from pathlib import Path

from autoselect.config import ConfigError
from autoselect.tracking.errors import TrackingError
from autoselect.tracking.store import Store


def download_model(address: str) -> Path:
    """Return a folder with the files of a logged model; in a local store that of the store itself.

    Args:
        address: `models:/ID`, `models:/NAME/VERSION` of a registered model, or `runs:/RUN/NAME`
            with the name that `Tracker.log_model` was given.

    Raises:
        ConfigError: this store has no such model, or does not answer or refuses.
    """
    store = Store.open()
    try:
        folder = store.model_folder(address)
    except TrackingError as error:
        raise ConfigError(
            f"model={address}: the tracking server {store.address} {error.verb} ({error}); set "
            "MLFLOW_TRACKING_URI, or give a folder"
        ) from error
    if folder is None:
        raise ConfigError(
            f"model={address} is not in {store.address}; the tag model.selector of an evaluation's "
            "run names one (models:/ID), and MLFLOW_TRACKING_URI the store"
        )
    return folder
