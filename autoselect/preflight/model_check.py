"""Check of the model for `autoselect doctor`: a folder with whole files, or a hub name."""

from __future__ import annotations

import json
import struct
import urllib.error
import urllib.request
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.preflight.estimates import GIB
from autoselect.preflight.finding import Finding, Subject
from autoselect.reference.resources import resolve_model

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
WAIT_S = 5.0
"""Longest wait for a server, in seconds."""


def check_model(subject: Subject) -> Finding:
    """Check that the model's folder has its configuration, whole weights and a usable processor."""
    name = subject.config.model
    folder = Path(resolve_model(name))
    if not folder.is_dir():
        return _hub_model(name)
    missing = [file for file in ("config.json",) if not (folder / file).is_file()]
    for group in (PROCESSOR_FILES, TOKENIZER_FILES):
        if not any((folder / file).is_file() for file in group):
            missing.append(f"{group[0]} (or {', '.join(group[1:])})")
    if missing:
        return Finding(
            "model",
            "fail",
            f"{folder} lacks {'; '.join(missing)}",
            f"download the whole model again: hf download REPO --local-dir {folder}",
        )
    weights = _weight_files(folder)
    damaged = [problem for file in weights if (problem := _damage(folder / file))]
    if damaged or not weights:
        found = "; ".join(damaged) or "no *.safetensors"
        fix = f"download the named files again: hf download REPO --local-dir {folder}"
        return Finding("model", "fail", f"{folder}: {found}", fix)
    from autoselect.vlm.loading import load_processor  # transformers takes seconds to import

    try:
        load_processor(folder)
    except ConfigError as error:
        return Finding(
            "model", "fail", str(error), "correct the processor, or install what it needs"
        )
    size = sum((folder / file).stat().st_size for file in weights)
    return Finding("model", "ok", f"{folder}: {len(weights)} weight files, {size / GIB:.2f} GiB")


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files, from the index if there is one."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(path.name for path in folder.glob("*.safetensors"))
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"model={folder}: {index.name} is damaged ({error})") from error


def _damage(path: Path) -> str:
    """Return what is wrong with a safetensors file, from its header and size, or an empty text."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            return f"{path.name} is cut off"
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return f"{path.name} has a damaged header"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    wanted = 8 + length + max(ends, default=0)
    return f"{path.name} has {size} of {wanted} bytes" if size < wanted else ""


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
