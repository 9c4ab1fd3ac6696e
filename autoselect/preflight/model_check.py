"""Check of the model for `autoselect doctor`: a folder with whole files, or a hub name."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

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
    check_folder,
    download_again,
    has_config,
    weight_files,
)
from autoselect.vlm.processor_fit import check_processor
from autoselect.vlm.quantised import check_trainable

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
WAIT_S = 5.0
"""Longest wait for a server, in seconds."""


def check_model(subject: Subject) -> Finding:
    """Check that the model's folder is a whole VLM with the processor of its weights."""
    name = subject.config.model
    folder = Path(resolve_model(name))
    try:
        if not folder.is_dir():
            reached = _hub_model(name)
            if reached.status != "fail" and has_config(name):
                check_files(name)
            return reached
        check_folder(folder, folder)
        missing = []
        for group in (PROCESSOR_FILES, TOKENIZER_FILES):
            if not any((folder / file).is_file() for file in group):
                missing.append(f"{group[0]} (or {', '.join(group[1:])})")
        if missing:
            fix = f"download the whole model again: {download_again(folder)}"
            return Finding("model", "fail", f"{folder} lacks {'; '.join(missing)}", fix)
        config = check_files(folder)
        check_trainable(folder, config)
        check_processor(folder, config, load_processor(folder))
        if fault := training_fault(config, subject.config.data.rounds):
            found, fix = fault
            return Finding("model", "fail", f"{folder} ({config.model_type}) {found}", fix)
    except ModelFilesError as error:
        return _wrong(folder, error)
    except ConfigError as error:
        fix = "correct the processor, or install what it needs"
        return Finding("model", "fail", str(error), fix)
    weights = weight_files(folder, folder)
    size = sum(file.stat().st_size for file in weights)
    return Finding("model", "ok", f"{folder}: {len(weights)} weight files, {size / GIB:.2f} GiB")


def _wrong(name: str | Path, error: ModelFilesError) -> Finding:
    return Finding("model", "fail", f"{name} {error.found}", error.fix)


def _hub_model(name: str) -> Finding:
    """Check that a hub name can be reached, or is in the cache."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return _wrong(name, absent(name))
    cached = has_config(name)
    if constants.HF_HUB_OFFLINE:
        if not cached:
            return _wrong(name, absent(name, "HF_HUB_OFFLINE is set, and it is not in the cache"))
        return Finding("model", "ok", f"{name}: HF_HUB_OFFLINE is set; it is in the cache")
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{name}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S):
            return Finding("model", "ok", f"{name} can be reached on the hub")
    except urllib.error.HTTPError as error:
        return _wrong(name, absent(name, f"it answers {error.code} {error.reason}"))
    except OSError as error:
        reason = f"{constants.ENDPOINT} cannot be reached: {error}"
        if not cached:
            return _wrong(name, absent(name, reason))
        fix = "set HF_HUB_OFFLINE=1, and nothing asks the hub"
        return Finding("model", "warn", f"{name} is in the cache, but {reason}", fix)
