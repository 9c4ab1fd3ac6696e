"""Short names of folders and selectors for the list of MLflow runs."""

from pathlib import Path

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.loading import selector_folders

FOLDERS_WITHOUT_NAME = ("selector", "train", "eval")


def shown_folder(out: str) -> str:
    """Return the last part of a folder that names it: `mine` for `runs/mine/eval`."""
    parts = [part for part in Path(out).absolute().parts if part not in FOLDERS_WITHOUT_NAME]
    return parts[-1]


def shown_selector(address: str) -> str:
    """Return a short name: `a/seed-0` for `runs/a/seed-0/train/selector`."""
    address = selector_folders(address)[SELECTOR]
    if ":/" in address:
        return address
    parts = [part for part in Path(address).parts if part not in FOLDERS_WITHOUT_NAME]
    return "/".join(parts[-2:]) or address
