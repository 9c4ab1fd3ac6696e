"""Digests of what answers depend on: values, folders, models and our own code."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from autoselect.vlm.model_files import local_folder

WHOLE_FILE_BYTES = 256 * 2**20
ANSWERING = ("torch", "transformers")
PACKAGE = Path(__file__).resolve().parents[1]


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_digest(folder: Path | str, pattern: str = "*") -> str:
    """Return 16 hexadecimal digits that identify the files of a folder whose names match.

    Files up to 256 MiB are hashed whole; of larger ones, the size and the first 256 MiB. Compiled
    Python is left out.
    """
    whole = hashlib.sha256()
    root = Path(folder)
    found = (path for path in root.rglob(pattern) if path.is_file())
    for path in sorted(path for path in found if path.suffix != ".pyc"):
        whole.update(f"{path.relative_to(root)}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            whole.update(file.read(WHOLE_FILE_BYTES))
    return whole.hexdigest()[:16]


def code_version() -> dict[str, str]:
    """Return versions of packages and a digest of our sources, on which answers depend too."""
    versions = {package: metadata.version(package) for package in ANSWERING}
    return {**versions, "autoselect": folder_digest(PACKAGE, "*.py")}


def model_files_digest(model: str) -> str | None:
    """Return a digest of a model's folder that also changes with the processor or its template."""
    folder = local_folder(model)
    return folder_digest(folder) if folder else None
