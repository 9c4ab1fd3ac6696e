"""Checkpoints of a training run: small, world-size-free, atomic.

A checkpoint holds only what is trained and what is needed to go on exactly where it was: float32
weights and Adam moments, step, data position, token statistics and the resolved configuration. No
file depends on the number of ranks or on the ZeRO stage. There is no random state to keep: order,
noise and budgets are functions of seed and step.

    checkpoints/
      latest                      the pointer, text: step-00000200
      step-00000200/
        weights.safetensors  exp_avg.safetensors  exp_avg_sq.safetensors  extra.safetensors
        state.json                step, data position, configuration, run
        manifest.json             format, and bytes and sha256 of each file above; written last

A save writes into `step-*.partial`, flushes payloads, then the manifest, renames the folder, and
moves the pointer; older checkpoints go only after that. Whatever moment the process dies at, the
pointer names a complete checkpoint or none was ever finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autoselect.config import ConfigError
from autoselect.ranks.rank_zero import on_main
from autoselect.training.engine_state import TrainedState
from autoselect.training.state import TrainingState

logger = logging.getLogger(__name__)

FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Format 1 also held random states, which nothing depends on."""

POINTER = "latest"
PARTIAL = ".partial"
TENSOR_FILES = ("weights", "exp_avg", "exp_avg_sq", "extra")


class CheckpointError(ConfigError):
    """A checkpoint is there but cannot be used; the run must not start afresh silently."""


class CheckpointStore:
    """The checkpoint folder of one run. `save` and `load` are collectives: every rank calls them.

    Only rank 0 touches the folder, so it need not be shared between nodes.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        """Args:
        folder: made by the first save.
        keep: complete checkpoints that stay, the newest ones.
        """
        assert keep >= 1, keep
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: TrainingState) -> Path:
        """Writes a complete checkpoint of rank 0's state; returns its folder.

        Returns on all ranks after the pointer has moved.

        Raises:
            CheckpointError: rank 0 could not write; raised on every rank.
        """
        target = self.folder / _name(state.step)
        _on_main(lambda: self._write(state, target), f"checkpoint {target} could not be written")
        return target

    def load(self) -> TrainingState | None:
        """The checkpoint the pointer names, the same on every rank.

        A checkpoint that fails its checks is refused with a warning and the newest complete one
        before it is used. None means that the folder holds no trace of a checkpoint.

        Raises:
            CheckpointError: checkpoints are there but none is complete; raised on every rank.
        """
        return _on_main(self._read_best, f"no usable checkpoint: {self.folder}")

    def _write(self, state: TrainingState, target: Path) -> None:
        if self._is_current(target):
            return  # the same step of the same run; replacing it would open a gap
        partial = target.with_name(target.name + PARTIAL)
        for leftover in (partial, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        _write_payloads(state, partial)
        files = sorted(partial.iterdir())
        manifest = {"format": FORMAT, "files": {path.name: _fingerprint(path) for path in files}}
        _write_text(partial / "manifest.json", json.dumps(manifest, indent=1))
        _flush_folder(partial)
        partial.rename(target)
        _flush_folder(self.folder)
        self._move_pointer(target.name)
        self._prune()

    def _is_current(self, target: Path) -> bool:
        return self._candidates()[:1] == [target] and _is_usable(target)

    def _move_pointer(self, name: str) -> None:
        new = self.folder / f"{POINTER}{PARTIAL}"
        _write_text(new, name + "\n")
        new.replace(self.folder / POINTER)
        _flush_folder(self.folder)

    def _prune(self) -> None:
        """Removes half-written checkpoints, and beyond `keep` those that `load` would try last.

        An unusable one goes before any usable one; the current one never goes.
        """
        others = self._candidates()[1:]
        if len(others) >= self.keep:
            others.sort(key=_is_usable, reverse=True)
        unfinished = list(self.folder.glob(f"step-*{PARTIAL}"))
        for path in others[self.keep - 1 :] + unfinished:
            # Renamed first, so that a half-removed folder is never taken for a checkpoint.
            doomed = path if path.name.endswith(PARTIAL) else path.with_name(path.name + PARTIAL)
            if doomed != path:
                path.rename(doomed)
            shutil.rmtree(doomed)

    def _newest_first(self) -> list[Path]:
        found = [p for p in self.folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)

    def _candidates(self) -> list[Path]:
        """The checkpoint of the pointer, then the older ones, then any newer one."""
        found = self._newest_first()
        pointer = self.folder / POINTER
        if not pointer.is_file():
            return found
        named = self.folder / pointer.read_text(encoding="utf-8").strip()
        if named not in found:
            logger.warning("%s names %s, which is not there", pointer, named.name)
            return found
        at = found.index(named)
        return found[at:] + found[:at]

    def _read_best(self) -> TrainingState | None:
        candidates = self._candidates()
        if not candidates:
            if (self.folder / POINTER).exists():
                raise CheckpointError(
                    f"{self.folder / POINTER} names a checkpoint but {self.folder} holds none; "
                    "restore the folder, or delete it to start afresh"
                )
            return None
        for path in candidates:
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                logger.warning("checkpoint refused: %s", error)
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {self.folder} is complete; restore one "
            "from a backup, or delete the folder to start afresh"
        )


def read_checkpoint(path: Path) -> TrainingState:
    """Verifies one checkpoint folder against its manifest and reads it.

    Raises:
        CheckpointError: a file is missing, unexpected, changed or unreadable.
    """
    _verify(path)
    try:
        tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSOR_FILES}
        values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    prefix = "statistics."
    extra = tensors["extra"].items()
    return TrainingState.from_dict(
        values,
        TrainedState(
            tensors["weights"], tensors["exp_avg"], tensors["exp_avg_sq"], values["adam_step"]
        ),
        {name.removeprefix(prefix): t for name, t in extra if name.startswith(prefix)},
    )


def _is_usable(path: Path) -> bool:
    try:
        _verify(path)
    except CheckpointError:
        return False
    return True


def _verify(path: Path) -> None:
    """Compares a checkpoint folder with its manifest.

    Raises:
        CheckpointError: a file is missing, unexpected, changed or unreadable.
    """
    manifest_path = path / "manifest.json"
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        expected = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest_path} cannot be read: {error!r}") from error
    if manifest.get("format") not in READABLE_FORMATS:
        known = " and ".join(map(str, READABLE_FORMATS))
        raise CheckpointError(
            f"{manifest_path} has format {manifest.get('format')!r}, this version reads {known}"
        )
    try:
        found = {p.name: _fingerprint(p) for p in path.iterdir() if p.name != manifest_path.name}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if found.keys() != expected.keys():
        raise CheckpointError(f"{path} holds {sorted(found)}, its manifest {sorted(expected)}")
    for name, fingerprint in expected.items():
        if found[name] != fingerprint:
            raise CheckpointError(f"{path / name} differs from its manifest (size or sha256)")


def _write_payloads(state: TrainingState, folder: Path) -> None:
    trained = state.trained
    extra = {f"statistics.{name}": tensor for name, tensor in state.statistics.items()}
    payloads = (trained.weights, trained.first_moments, trained.second_moments, extra)
    for name, tensors in zip(TENSOR_FILES, payloads, strict=True):
        path = folder / f"{name}.safetensors"
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path)
        _flush(path)
    _write_text(folder / "state.json", json.dumps(state.to_dict(), indent=1))


def _on_main(action: Callable[[], Any], what: str) -> Any:
    """`on_main` for work on the checkpoint folder, whose failure is a `CheckpointError`."""

    def attempt() -> Any:
        try:
            return action()
        except (OSError, CheckpointError) as error:
            raise CheckpointError(f"{what}: {error}") from error

    return on_main(attempt)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    """Forces a file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Forces a folder's entries to the disk, so that names survive a power cut in order."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
