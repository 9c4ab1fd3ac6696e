"""Where a selector's folder comes from and goes to: this disk, the hub, the tracking store."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.files.digest import quick_digest, same_weights

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DIGEST = re.compile(r"([0-9a-f]{64}\+)?[0-9a-f]{64}")
LOGGED_MODEL = re.compile(r"models:/\S+|runs:/[^/\s]+/\S+")


def is_hub_name(name: object) -> bool:
    """Return True if `name` has the form `org/name` and is not a local folder."""
    return isinstance(name, str) and bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def is_logged_model(name: object) -> bool:
    """Return True for the address of a logged model, `models:/ID` or `runs:/RUN/NAME`."""
    return isinstance(name, str) and bool(LOGGED_MODEL.fullmatch(name))


def other_model(metadata: Mapping[str, Any], model: object) -> str | None:
    """Return a warning if a selector was trained for another model, else None.

    Of a hub name the name tells; of a folder, `config.json` and the ends of the weight files.

    Args:
        metadata: facts about the selector's training.
        model: what the model is called now: hub name or folder; another name tells nothing.
    """
    trained, digest = metadata.get("model"), str(metadata.get("model_digest"))
    if is_hub_name(trained) and is_hub_name(model):
        known = trained == model
    elif model and DIGEST.fullmatch(digest) and (Path(str(model)) / "config.json").is_file():
        known = same_weights(digest, _digest_here(Path(str(model)) / "config.json"))
    else:
        return None
    if known:
        return None
    return (
        f"the selector was trained for {trained}, not for {model}: its ranking may not fit; "
        "measure it with `autoselect eval`"
    )


def _digest_here(config: Path) -> str:
    """Return `quick_digest`, read once while the files stay as they are: `attach` asks often."""
    files = [config, *sorted(config.parent.glob("*.safetensors"))]
    return _digest(config, tuple((file.name, file.stat().st_mtime_ns) for file in files))


@lru_cache
def _digest(config: Path, _files: tuple[tuple[str, int], ...]) -> str:
    return quick_digest(config)


def local_folder(name: str | Path, revision: str | None, files: Sequence[str]) -> Path:
    """Return the folder that a selector's name means, downloaded if it is not a local one.

    Args:
        name: a folder; else `org/name` on the hub, or a logged model of the tracking store.
        revision: branch, tag or commit on the hub.
        files: names of the files to download from the hub.

    Raises:
        ConfigError: the hub or the store lacks it or cannot be reached, or there is a revision of
            something else.
    """
    if revision is not None and not is_hub_name(str(name)):
        raise ConfigError(
            f"selector={name} is not a name on the hub, or is a folder here, so "
            f"revision={revision} would be ignored; leave the revision out, or move the folder"
        )
    if is_logged_model(name):
        from autoselect.tracking.models import download_model

        return download_model(str(name))
    return _download(str(name), revision, files) if is_hub_name(str(name)) else Path(name)


def _download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"selector={name} is not a folder here, and the hub does not give it: "
            f"{str(error).splitlines()[0].rstrip('. ')}; give a folder written by save_pretrained "
            "or by training (RUN/selector), or the name of a selector on the hub"
        ) from error


def upload(
    repository: str,
    write: Callable[[str], None],
    files: tuple[str, str],
    private: bool,
    message: str,
) -> str:
    """Upload a folder to `org/name` on the hub and return the address of the commit.

    A missing repository is created.

    Args:
        repository: `org/name`.
        write: writes the files into the folder that it is given.
        files: names of the configuration and of the weights; a repository that has the first alone
            holds something else.
        private: visibility of a repository that is created.
        message: subject of the commit.

    Raises:
        ConfigError: the name has another form, the repository holds something else, or the hub
            refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError(f"repository={repository!r} must have the form org/name")
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            is_free = [api.file_exists(repository, name) for name in files] != [True, False]
            if is_free:
                commit = api.upload_folder(
                    repo_id=repository, folder_path=folder, commit_message=message
                )
        except (HTTPError, OSError, ValueError) as error:
            raise ConfigError(
                f"repository={repository} cannot be written: {str(error).splitlines()[0]}; "
                "log in with `hf auth login`, and check the name"
            ) from error
    if not is_free:
        raise ConfigError(
            f"repository={repository} has a {files[0]} that is not a selector's, which uploading "
            "would replace; give the selector a repository of its own"
        )
    return str(commit.commit_url)
