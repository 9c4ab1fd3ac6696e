"""Check of the model for `autoselect doctor`: a folder with whole files, or a hub name."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.preflight.estimates import GIB
from autoselect.preflight.finding import Finding, Subject
from autoselect.reference.resources import resolve_model
from autoselect.vlm.loading import check_model as check_files
from autoselect.vlm.loading import load_processor
from autoselect.vlm.model_files import (
    ModelFilesError,
    check_folder,
    download_again,
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
    """Check that the model's folder is a whole VLM with the processor of its weights."""
    name = subject.config.model
    folder = Path(resolve_model(name))
    try:
        if not folder.is_dir():
            reached = _hub_model(name)
            if reached.status != "fail" and local_folder(name) is not None:
                check_files(name)
            return reached
        check_folder(folder, folder)
        missing = [] if (folder / "config.json").is_file() else ["config.json"]
        for group in (PROCESSOR_FILES, TOKENIZER_FILES):
            if not any((folder / file).is_file() for file in group):
                missing.append(f"{group[0]} (or {', '.join(group[1:])})")
        if missing:
            fix = f"download the whole model again: {download_again(folder)}"
            return Finding("model", "fail", f"{folder} lacks {'; '.join(missing)}", fix)
        config = check_files(folder)
        check_trainable(folder, config)
        check_processor(folder, config, load_processor(folder))
    except ModelFilesError as error:
        return Finding("model", "fail", f"{folder} {error.found}", error.fix)
    except ConfigError as error:
        fix = "correct the processor, or install what it needs"
        return Finding("model", "fail", str(error), fix)
    weights = weight_files(folder, folder)
    size = sum(file.stat().st_size for file in weights)
    return Finding("model", "ok", f"{folder}: {len(weights)} weight files, {size / GIB:.2f} GiB")


def _hub_model(name: str) -> Finding:
    """Check that a hub name can be reached, or is in the cache."""
    from huggingface_hub import constants, get_token, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError as error:
        found = f"{name} is neither a folder nor a hub name ({error})"
        return Finding("model", "fail", found, "correct `model` in the configuration")
    where = "it is in the cache" if cached else "it is not in the cache"
    if constants.HF_HUB_OFFLINE:
        fix = "" if cached else f"run `hf download {name}` on a machine with a network"
        found = f"{name}: HF_HUB_OFFLINE is set; {where}"
        return Finding("model", "ok" if cached else "fail", found, fix)
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{name}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S):
            return Finding("model", "ok", f"{name} can be reached on the hub")
    except urllib.error.HTTPError as error:
        found = f"{name}: the hub answers {error.code} {error.reason}"
        return Finding("model", "fail", found, "correct the name, or log in with `hf auth login`")
    except OSError as error:
        found = f"{name}: the hub {constants.ENDPOINT} cannot be reached ({error}); {where}"
        fix = f"run `hf download {name}` on a machine with a network, then set HF_HUB_OFFLINE=1"
        return Finding("model", "warn" if cached else "fail", found, fix)
