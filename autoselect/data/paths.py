"""Expand the folders, patterns, URLs and commands that users write into a list of shards."""

import glob
import os
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.config.extras import extra
from autoselect.data import storage
from autoselect.files.atomic import replacing

_PIPE = "pipe:"
JSON_FILES, PACKED = (".json", ".jsonl"), (".gz", ".bz2", ".xz", ".zip")
"""How the names of files of LLaVA rows end, and of those that are compressed."""


def is_json_file(path: str) -> bool:
    """Return True for the name of a file of LLaVA rows, which may be compressed."""
    name = path.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name.endswith(JSON_FILES)


def expand(
    paths: str | Sequence[str], *, allow_pipe: bool = False, pipe_folder: str | None = None
) -> list[str]:
    """Return the shards that `paths` name, in order.

    `paths` is a folder (its `*.tar`; a remote one ends in `/`), a tar file, a pattern with
    `{000..012}` or `*`, a URL, a `pipe:` command, or a list of these. The output of commands is
    kept in `pipe_folder`.

    Raises:
        ConfigError: a path matches no shard or JSON, a shard comes twice, or a command is not
            permitted.
    """
    shards: list[str] = []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        text = os.fspath(path)
        if text.startswith(_PIPE):
            shards.append(_run_pipe(text, allow_pipe, pipe_folder))
            continue
        folder, name = os.path.split(text)
        if folder and os.path.isdir(folder):  # as it is written, whatever characters it has
            ones = [os.path.join(folder, one) for one in _without_braces(name)]
        else:
            ones = _without_braces(text)
        for one in [text] if "{" not in text or os.path.exists(text) else ones:
            shards += _expand_one(one)
    if not shards:
        raise ConfigError(f"paths={paths!r} name no shards; give a folder, tar files or URLs")
    rows = next((shard for shard in shards if is_json_file(shard)), None)
    if rows is not None:
        raise ConfigError(
            f"path={rows} is JSON, but shards are tar files; convert LLaVA rows with "
            "`autoselect shards convert-llava`, or name the tar files alone"
        )
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise ConfigError(f"paths={paths!r} name {twice} twice; list every shard once")
    return shards


def _without_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with `{000..012}` stands for.

    Raises:
        ConfigError: a brace has no partner.
    """
    with extra("data"):
        from braceexpand import braceexpand
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(
            f"path={pattern!r} has a brace without its partner ({error}); write shard-{{000..012}}"
            ".tar, or a folder"
        ) from error


def _expand_one(path: str) -> list[str]:
    if storage.is_remote(path):
        if path.endswith("/"):
            path += "*.tar"
        if "*" not in path:
            return [path]
        system, inner = storage.file_system(path)
        found = sorted(system.unstrip_protocol(name) for name in system.glob(inner))
    elif os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
    elif os.path.isfile(path):
        return [path]
    else:
        folder, name = os.path.split(path)
        literal = glob.escape(folder) if os.path.isdir(folder) else folder
        found = sorted(glob.glob(os.path.join(literal, name)))
    if not found:
        raise ConfigError(f"path={path} matches no shard; check the folder and the pattern")
    return found


def _run_pipe(url: str, allowed: bool, folder: str | None) -> str:
    """Run a command once and keep its output as a local shard, because a pipe cannot seek."""
    if not allowed:
        raise ConfigError(
            f"path={url!r} would run a shell command; if you trust it, `autoselect shards index "
            "--allow-pipe --index-folder FOLDER` keeps its output there as a shard: give that one"
        )
    if folder is None:
        raise ConfigError(
            f"path={url!r} needs a folder to keep the command's output in; give --index-folder"
        )
    target = Path(folder) / f"pipe-{sha256(url.encode()).hexdigest()[:16]}.tar"
    if target.exists():
        return str(target)
    with extra("data"):
        import webdataset

    try:
        with replacing(target) as copy, webdataset.gopen(url, "rb") as source:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise ConfigError(f"path={url!r} failed: {error}; run the command by hand") from error
    return str(target)
