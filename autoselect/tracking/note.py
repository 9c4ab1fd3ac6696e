"""Which runs belong to an output folder, so that a later start goes on in them.

A folder's `tracking.json` is `{WORK: {"identity": ..., "runs": {NAME: RUN_ID}}}` for every work:
training, evaluation, analysis, ablation and public benchmarks.
"""

import json
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.files.atomic import write_text

NOTE_FILE = "tracking.json"
TRAINING, ABLATION = "train", "ablation"


class RunNote:
    """Ids of the runs of one kind of work in an output folder.

    Args:
        folder: the output folder, made with the first id.
        work: the kind of work, such as `evaluation`.
        identity: what makes later work the same, a JSON value; ids of any other are forgotten.

    Raises:
        ConfigError: the folder has a `tracking.json` that is not such a note.
    """

    def __init__(self, folder: Path, work: str, identity: Any) -> None:
        self._path, self._work = folder / NOTE_FILE, work
        known = self._read().get(work, {})
        same = "identity" in known and known["identity"] == json.loads(json.dumps(identity))
        self._own: dict[str, Any] = known if same else {"identity": identity, "runs": {}}

    @classmethod
    def latest(cls, folder: Path, work: str) -> str | None:
        """Return the id of the run that a folder's note names for a work, whatever its identity."""
        runs = cls(folder, work, None)._read().get(work, {}).get("runs", {})
        found: str | None = runs.get(work)
        return found

    def get(self, name: str) -> str | None:
        """Return the id of a run, None if it never began."""
        found: str | None = self._own["runs"].get(name)
        return found

    def keep(self, name: str, run_id: str | None) -> None:
        """Write an id down; None, of a run without tracking, is left out."""
        if run_id is not None:
            self._own["runs"][name] = run_id
            write_text(self._path, json.dumps({**self._read(), self._work: self._own}, indent=1))

    def _read(self) -> dict[str, Any]:
        if not self._path.is_file():
            return {}
        try:
            found = _converted(json.loads(self._path.read_text()))
            well_formed = all(isinstance(own["runs"], dict) for own in found.values())
        except (ValueError, TypeError, KeyError, AttributeError):
            well_formed = False
        if not well_formed:
            raise ConfigError(
                f"{self._path} is not a note of MLflow runs; remove it, and new runs begin"
            )
        return found


def _converted(found: dict[str, Any]) -> dict[str, Any]:
    """Return the note of an earlier version, of a training or an ablation, in today's format."""
    if found.keys() == {"run_id", "settings"}:
        runs = {TRAINING: found["run_id"]}
        return {TRAINING: {"identity": found["settings"], "runs": runs}}
    if all(isinstance(run_id, str) for run_id in found.values()):
        return {ABLATION: {"identity": None, "runs": found}}
    return found
