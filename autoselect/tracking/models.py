"""Model folders that runs logged, by their MLflow addresses."""

from pathlib import Path

from autoselect.config import ConfigError
from autoselect.tracking.errors import TrackingError
from autoselect.tracking.store import Store


def download_model(address: str) -> Path:
    """Return a folder with the files of a logged model; for a local store, its own folder.

    Args:
        address: `models:/ID`, `models:/NAME/VERSION` of a registered model, or `runs:/RUN/NAME`
            with the name given to `Tracker.log_model`.

    Raises:
        ConfigError: the store lacks the model, does not answer, or refuses.
    """
    store = Store.open()
    try:
        folder = store.model_folder(address)
    except TrackingError as error:
        raise ConfigError(
            f"model={address}: the tracking server {store.address} {error.verb} ({error}); "
            f"{error.fix}, or give a folder"
        ) from error
    if folder is None:
        raise ConfigError(
            f"model={address} is not in {store.address}; give an address that the tag "
            "model.selector of an evaluation's run holds (models:/ID), and set "
            "MLFLOW_TRACKING_URI to its store"
        )
    return folder
