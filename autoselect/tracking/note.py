"""Which runs belong to an output folder, so that a later start goes on in them."""

import json
from pathlib import Path
from typing import Any

NOTE_FILE = "tracking.json"


class RunNote:
    """Ids of runs by name, in the `tracking.json` of a folder, where others may keep theirs, too.

    Args:
        folder: the output folder; made with the first id.
        work: what the runs are of, such as `evaluation`.
        identity: what makes later work the same, a JSON value; ids of any other are forgotten.
    """

    def __init__(self, folder: Path, work: str, identity: Any) -> None:
        self._path, self._work = folder / NOTE_FILE, work
        known = self._read().get(work, {})
        same = known.get("identity") == json.loads(json.dumps(identity))
        self._own: dict[str, Any] = known if same else {"identity": identity, "runs": {}}

    def get(self, name: str) -> str | None:
        """The id of a run, None when it never began."""
        found: str | None = self._own["runs"].get(name)
        return found

    def keep(self, name: str, run_id: str | None) -> None:
        """Write an id down; None, of a run without tracking, is left out."""
        if run_id is None:
            return
        self._own["runs"][name] = run_id
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({**self._read(), self._work: self._own}, indent=1))
        partial.replace(self._path)

    def _read(self) -> dict[str, Any]:
        return dict(json.loads(self._path.read_text())) if self._path.is_file() else {}
