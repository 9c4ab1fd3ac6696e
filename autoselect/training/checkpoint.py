"""Checkpoints of a training run: small, atomic, and independent of the number of ranks.

A checkpoint holds what is trained and what an exact resume needs: float32 weights and Adam moments,
step, token statistics, digests and the resolved configuration. No file depends on the number of
ranks or on the ZeRO stage. Random states are not stored, because order, noise and budgets are
functions of seed and step.

    checkpoints/
      latest                      the pointer, text: step-00000200
      step-00000200/
        weights.safetensors  exp_avg.safetensors  exp_avg_sq.safetensors  extra.safetensors
        state.json                `TrainingState.to_dict`: step, configuration, digests, progress
        manifest.json             format, and bytes and sha256 of each file above; written last

A save writes into `step-*.partial`, flushes the files, then the manifest, renames the folder and
moves the pointer. Older checkpoints are removed only after that. Whenever the process dies, the
pointer names a complete checkpoint, unless none was ever finished.
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

from autoselect.config import ConfigError
from autoselect.files.atomic import DISK_FULL, sync_folder
from autoselect.files.tensors import read_tensors, write_tensors
from autoselect.ranks.rank_zero import on_main
from autoselect.training.engine_state import TrainedState
from autoselect.training.state import TrainingState
from autoselect.vlm.model_files import is_pointer

logger = logging.getLogger(__name__)

FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Format 1 also held random states, which are ignored."""

POINTER = "latest"
PARTIAL = ".partial"
TENSOR_FILES = ("weights", "exp_avg", "exp_avg_sq", "extra")


class CheckpointError(ConfigError):
    """A checkpoint exists but cannot be used; the run does not start afresh silently."""


class CheckpointStore:
    """The checkpoint folder of one run; every rank calls `save` and `load` (collectives).

    Only rank 0 reads and writes the folder, so nodes need not share it.

    Args:
        folder: created by the first save.
        keep: number of complete checkpoints that are kept, the newest ones.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        assert keep >= 1, keep
        self.folder = Path(folder)
        self.keep = keep
        self._loaded = False
        self._own: Path | None = None
        """What the pointer named when this store last read or wrote it."""

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint of rank 0's state and return its folder, once it is complete.

        Raises:
            CheckpointError: rank 0 could not write, or another run has written into the folder
                since `load`; raised on every rank.
        """
        target = self.folder / _name(state.step)
        _on_main(lambda: self._write(state, target), f"checkpoint {target} could not be written")
        return target

    def load(self) -> TrainingState | None:
        """Return the checkpoint that the pointer names, on every rank; None if there is none.

        If that one fails its checks, a warning is logged and the newest complete one is taken.

        Raises:
            CheckpointError: there are checkpoints but none is complete; raised on every rank.
        """
        return _on_main(self._read_usable, f"no usable checkpoint: {self.folder}")

    def _write(self, state: TrainingState, target: Path) -> None:
        named = self._named()
        if self._loaded and named not in (None, self._own):
            raise CheckpointError(
                f"another run has written {named} meanwhile, and two runs must not share an output "
                "folder; end one of them, or give each an `output` of its own"
            )
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
        sync_folder(partial)
        partial.rename(target)
        sync_folder(self.folder)
        self._move_pointer(target.name)
        self._prune()

    def _is_current(self, target: Path) -> bool:
        return self._candidates()[:1] == [target] and _is_usable(target)

    def _move_pointer(self, name: str) -> None:
        new = self.folder / f"{POINTER}{PARTIAL}"
        _write_text(new, name + "\n")
        new.replace(self.folder / POINTER)
        sync_folder(self.folder)
        self._own = self._named()

    def _prune(self) -> None:
        """Remove half-written checkpoints and, beyond `keep`, those that `load` would try last.

        Unusable ones are removed before usable ones, and the current one never. One that cannot be
        removed, such as a folder with an open file on NFS, waits for the next save.
        """
        others = self._candidates()[1:]
        if len(others) >= self.keep:
            others.sort(key=_is_usable, reverse=True)
        unfinished = list(self.folder.glob(f"step-*{PARTIAL}"))
        for path in others[self.keep - 1 :] + unfinished:
            # Renamed first, so that a half-removed folder is never taken for a checkpoint.
            doomed = path if path.name.endswith(PARTIAL) else path.with_name(path.name + PARTIAL)
            try:
                if doomed != path:
                    path.rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                logger.warning("old checkpoint %s cannot be removed: %s", path, error)

    def _newest_first(self) -> list[Path]:
        found = [p for p in self.folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)

    def _candidates(self) -> list[Path]:
        """Return the checkpoint of the pointer, then older ones, then newer ones."""
        found, named = self._newest_first(), self._named()
        if named not in found:
            return found
        at = found.index(named)
        return found[at:] + found[:at]

    def _named(self) -> Path | None:
        """Return the checkpoint folder that the pointer names, which may be missing."""
        pointer = self.folder / POINTER
        if not pointer.is_file():
            return None
        return self.folder / pointer.read_bytes()[:64].decode(errors="replace").strip()

    def first_usable(self) -> tuple[TrainingState | None, list[str]]:
        """Return the first usable checkpoint of `_candidates`, None if there is none.

        Beside it, return one sentence for each checkpoint before it that is not usable.
        """
        candidates, named = self._candidates(), self._named()
        wrong = []
        if named is not None and named not in candidates:
            wrong.append(f"{self.folder / POINTER} names {named.name!r}, which is not there")
        for path in candidates:
            try:
                return read_checkpoint(path), wrong
            except CheckpointError as error:
                wrong.append(str(error))
        return None, wrong

    def _read_usable(self) -> TrainingState | None:
        """Do what `load` says, on rank 0."""
        self._loaded, self._own = True, self._named()
        state, wrong = self.first_usable()
        for problem in wrong:
            logger.warning("checkpoint refused: %s", problem)
        if state is None and wrong:
            count = len(self._newest_first())
            what = f"none of the {count} checkpoints in {self.folder} is complete"
            if not count:
                what = f"{self.folder / POINTER} names a checkpoint but {self.folder} holds none"
            raise CheckpointError(
                f"{what}; restore one from a backup, or delete the folder to start afresh"
            )
        return state


def read_checkpoint(path: Path) -> TrainingState:
    """Read one checkpoint folder after comparing it with its manifest.

    Raises:
        CheckpointError: a file is missing, unexpected, changed or unreadable, or holds numbers that
            are not finite.
    """
    _verify(path)
    try:
        tensors = {name: read_tensors(path / f"{name}.safetensors") for name in TENSOR_FILES}
        values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for file in TENSOR_FILES:
        broken = [name for name, tensor in tensors[file].items() if not tensor.isfinite().all()]
        if broken:
            raise CheckpointError(
                f"{path / file}.safetensors has numbers that are not finite in {broken[0]}"
            )
    prefix = "statistics."
    extra = tensors["extra"].items()
    try:
        return TrainingState.from_dict(
            values,
            TrainedState(
                tensors["weights"], tensors["exp_avg"], tensors["exp_avg_sq"], values["adam_step"]
            ),
            {name.removeprefix(prefix): t for name, t in extra if name.startswith(prefix)},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'state.json'} is not a state: {error!r}") from error


def _is_usable(path: Path) -> bool:
    try:
        _verify(path)
    except CheckpointError:
        return False
    return True


def _verify(path: Path) -> None:
    """Compare a checkpoint folder with its manifest.

    Raises:
        CheckpointError: a file is missing, unexpected, changed or unreadable.
    """
    manifest_path = path / "manifest.json"
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        expected = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
        if found[name] != fingerprint and is_pointer(path / name):
            raise CheckpointError(f"{path / name} is a git-lfs pointer; run `git lfs pull` there")
        if found[name] != fingerprint:
            raise CheckpointError(f"{path / name} differs from its manifest (size or sha256)")


def _write_payloads(state: TrainingState, folder: Path) -> None:
    trained = state.trained
    extra = {f"statistics.{name}": tensor for name, tensor in state.statistics.items()}
    payloads = (trained.weights, trained.first_moments, trained.second_moments, extra)
    for name, tensors in zip(TENSOR_FILES, payloads, strict=True):
        write_tensors(folder / f"{name}.safetensors", tensors)
    _write_text(folder / "state.json", json.dumps(state.to_dict(), indent=1))


def _on_main(action: Callable[[], Any], what: str) -> Any:
    """Run `on_main` for work on the checkpoint folder; errors become `CheckpointError`."""

    def attempt() -> Any:
        try:
            return action()
        except CheckpointError as error:
            raise CheckpointError(f"{what}: {error}") from error
        except OSError as error:
            fix = "free some space" if error.errno in DISK_FULL else "mend that"
            raise CheckpointError(
                f"{what}: {error}; {fix}, then start again, and the run resumes"
            ) from error

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
    with path.open("rb") as file:
        os.fsync(file.fileno())
