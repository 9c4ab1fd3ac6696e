"""Check of the model for `autoselect doctor`: whole files, in a folder or the hub's cache."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from autoselect.config import ConfigError
from autoselect.preflight.estimates import GIB
from autoselect.preflight.finding import Finding, Subject
from autoselect.reference.resources import resolve_model
from autoselect.vlm.families import training_fault
from autoselect.vlm.loading import check_model as check_files
from autoselect.vlm.loading import load_processor
from autoselect.vlm.model_files import (
    ModelFilesError,
    absent,
    download_again,
    has_config,
    local_folder,
    weight_files,
)
from autoselect.vlm.processor_fit import check_processor
from autoselect.vlm.quantised import check_trainable

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
WAIT_S = 5.0
"""Longest wait for a server, in seconds."""


def check_model(subject: Subject) -> Finding:
    """Check that the model is a whole VLM that can be trained on, with its own processor."""
    name = resolve_model(subject.config.model)
    given = Path(name).is_dir()
    try:
        unasked = "" if given else _ask_hub(name)
        config = check_files(name, weights_needed=given)  # a hub's weights may be still to come
        check_trainable(name, config)
        if fault := training_fault(config, subject.config.data.rounds):
            found, fix = fault
            return Finding("model", "fail", f"{name} ({config.model_type}) {found}", fix)
        folder = local_folder(name)
        lacking = _lacking(name, folder)
        if lacking and not given and not unasked:
            return _not_downloaded(name, lacking)
        if lacking or folder is None:
            hub = f"hf download {name}, with a network and without HF_HUB_OFFLINE"
            why = f" in the cache, and {unasked}" if unasked else ""
            fix = f"download the whole model: {download_again(name) if given else hub}"
            return Finding("model", "fail", f"{name} lacks {'; '.join(lacking)}{why}", fix)
        check_processor(name, config, load_processor(folder))
    except ModelFilesError as error:
        return Finding("model", "fail", f"{name} {error.found}", error.fix)
    except ConfigError as error:
        fix = "correct the processor, or install what it needs"
        return Finding("model", "fail", str(error), fix)
    weights = weight_files(name, folder)
    size = sum(file.stat().st_size for file in weights)
    found = f"{name}: {len(weights)} weight files, {size / GIB:.2f} GiB"
    if unasked and not constants.HF_HUB_OFFLINE:
        fix = "set HF_HUB_OFFLINE=1, and nothing asks the hub"
        return Finding("model", "warn", f"{found}, in the cache, but {unasked}", fix)
    return Finding("model", "ok", found if given else f"{found}, in the cache")


def _lacking(name: str, folder: Path | None) -> list[str]:
    """Return the files that a model's folder or cached copy should hold and does not."""
    if folder is None:
        return ["all files"]
    missing = [
        f"{group[0]} (or {', '.join(group[1:])})"
        for group in (PROCESSOR_FILES, TOKENIZER_FILES)
        if not any((folder / file).is_file() for file in group)
    ]
    files = weight_files(name, folder)
    absent_weights = [file.name for file in files if not file.is_file()]
    return missing + (absent_weights if files else ["weights"])


def _not_downloaded(name: str, lacking: list[str]) -> Finding:
    """Return the warning for a model that training would download when it starts."""
    found = f"{name} can be reached on the hub, but the cache lacks {'; '.join(lacking)}"
    fix = (
        "training downloads it when it starts, but compute nodes often have no network: run "
        f"`hf download {name}` now, and set HF_HUB_OFFLINE=1 in the job"
    )
    return Finding("model", "warn", found, fix)


def _ask_hub(name: str) -> str:
    """Return why the hub cannot be asked for a model in the cache; empty if it has the model.

    Raises:
        ModelFilesError: it is not a hub name, or neither the hub nor the cache gives the model.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise absent(name) from None
    cached = has_config(name)
    if constants.HF_HUB_OFFLINE:
        if not cached:
            raise absent(name, "HF_HUB_OFFLINE is set, and it is not in the cache")
        return "HF_HUB_OFFLINE is set"
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{name}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S):
            return ""
    except urllib.error.HTTPError as error:
        raise absent(name, f"it answers {error.code} {error.reason}") from error
    except OSError as error:
        reason = f"{constants.ENDPOINT} cannot be reached: {error}"
        if not cached:
            raise absent(name, reason) from error
        return reason
