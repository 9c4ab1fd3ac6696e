"""Write shards in the WebDataset layout: `key.jpg` (or `key.0.jpg`, ...) and `key.json`."""

import json
import re
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from autoselect.config import ConfigError
from autoselect.config.bounds import at_least
from autoselect.config.extras import extra
from autoselect.data.decode import Limits, image_suffix
from autoselect.data.index import build_index, sidecar, write_index
from autoselect.data.record import check_conversation, check_placeholders, encoded
from autoselect.files.atomic import replacing

# No dot, because WebDataset cuts names at the first one; no hidden or metadata names.
_KEY = re.compile(r"(?!(.*/)?__)[A-Za-z0-9_-][A-Za-z0-9_/-]*")


def check_key(name: str, key: str) -> None:
    """Raise ConfigError unless `key` can begin a key; the message calls it `name`."""
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{name}={key!r} must match {_KEY.pattern}; choose another")


class ShardWriter:
    """Writer of samples into `prefix-000000.tar`, `prefix-000001.tar`, ... with their indexes.

    A shard is written under a temporary name, renamed when complete, then indexed, so a file with
    an index is complete even after a crash. The same calls write the same bytes. `limits` are caps
    stored in the indexes for everyone who reads the shards.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "shard",
        samples_per_shard: int = 1000,
        first_shard: int = 0,
        limits: Limits | None = None,
    ) -> None:
        at_least(1, "samples_per_shard", samples_per_shard)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prefix = prefix
        self._samples_per_shard = samples_per_shard
        self._number = first_shard
        self._limits = limits
        self._in_shard = 0
        self._keys: set[str] = set()
        self._file: AbstractContextManager[BinaryIO] | None = None
        self._tar: Any = None
        self.shards: list[Path] = []

    def write(self, key: str, record: dict[str, Any], images: list[bytes]) -> None:
        """Add one sample.

        Args:
            key: unique; letters, digits, `_`, `-` and `/`.
            record: stored as JSON, with `id` set to the key and `image` to the member names.
            images: encoded images, stored unchanged.

        Raises:
            ConfigError: `check_key` refuses the key, or it was used before.
            RecordError: the conversation is malformed, its placeholders do not match the images,
                or a text cannot be encoded.
            ImageError: an image has an unknown format.
        """
        check_key("key", key)
        if key in self._keys:
            raise ConfigError(f"key={key!r} was written before; give every sample its own key")
        check_conversation(record)
        check_placeholders(record, len(images))
        suffixes = [image_suffix(data) for data in images]
        if len(images) > 1:
            suffixes = [f"{number}.{suffix}" for number, suffix in enumerate(suffixes)]
        names = [f"{key}.{suffix}" for suffix in suffixes]
        stored = {name: value for name, value in record.items() if name != "image"} | {"id": key}
        if names:
            stored["image"] = names if len(names) > 1 else names[0]
        members: dict[str, Any] = dict(zip(suffixes, images, strict=True))
        text = json.dumps(stored, ensure_ascii=False, sort_keys=True)
        members["json"] = encoded(text, "the record")
        self._open().write({"__key__": key} | members)
        self._keys.add(key)
        self._in_shard += 1
        if self._in_shard == self._samples_per_shard:
            self._finish_shard()

    def close(self) -> None:
        """Complete the last shard."""
        if self._tar is not None:
            self._finish_shard()

    def _path(self) -> Path:
        return self.folder / f"{self._prefix}-{self._number:06d}.tar"

    def _open(self) -> Any:
        """Return the WebDataset writer of the current shard; begin the shard if necessary."""
        if self._tar is None:
            # Imported here because it imports torch, which is slow and not needed to read shards.
            with extra("data"):
                import webdataset

            self._file = replacing(self._path())
            stream = self._file.__enter__()
            self._tar = webdataset.TarWriter(stream, encoder=False, user="", group="", mtime=0)
        return self._tar

    def _finish_shard(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        target = self._path()
        Path(sidecar(str(target))).unlink(missing_ok=True)
        self._file.__exit__(None, None, None)
        write_index(build_index(str(target), self._limits), sidecar(str(target)))
        self.shards.append(target)
        self._tar = self._file = None
        self._in_shard = 0
        self._number += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.close()
        except BaseException as failed:
            self._discard(failed)
            raise
        if error is not None:
            self._discard(error)

    def _discard(self, error: BaseException) -> None:
        """Remove what an unfinished shard has on the disk, which may be full."""
        if self._file is None:
            return
        with suppress(OSError):
            self._tar.close()  # writes the end of the archive
        file, self._tar, self._file = self._file, None, None
        file.__exit__(type(error), error, error.__traceback__)
