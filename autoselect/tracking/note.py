"""Which runs belong to an output folder, so that a later start goes on in them."""

import json
from pathlib import Path
from typing import Any

NOTE_FILE = "tracking.json"


class RunNote:
    """Ids of the runs of a folder, by name, in its `tracking.json`.

    Args:
        folder: the output folder; made with the first id.
        identity: what the runs are of, a JSON value; ids of anything else are forgotten.
    """

    def __init__(self, folder: Path, identity: Any) -> None:
        self._path = folder / NOTE_FILE
        self._content: dict[str, Any] = {"identity": identity, "runs": {}}
        if self._path.is_file():
            known = json.loads(self._path.read_text())
            if known.get("identity") == json.loads(json.dumps(identity)):
                self._content = known

    def get(self, name: str) -> str | None:
        """The id of a run, None when it never began."""
        found: str | None = self._content["runs"].get(name)
        return found

    def keep(self, name: str, run_id: str | None) -> None:
        """Write an id down; None, of a run without tracking, is left out."""
        if run_id is None:
            return
        self._content["runs"][name] = run_id
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._content, indent=1))
        partial.replace(self._path)
