"""What libraries ask of a user account, for containers and jobs that run without one."""

import getpass
import logging
import os
import tempfile
from pathlib import Path

from autoselect.config.destinations import cannot_write

CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_HOME": "triton",
}
"""Variables that move a library's cache out of the home folder, and the folder's new name."""

logger = logging.getLogger(__name__)


def settle_in() -> None:
    """Make sure that there is a user name, a home folder, and a place for caches.

    MLflow, DeepSpeed and torch's compiler ask for them when they are imported. Python finds none if
    neither variables nor an entry in passwd name them, and a home folder may not be writable. Then
    a folder of this user in the folder for temporary files serves. Variables that are set stay.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the user id has no entry in passwd
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(_own_folder())
        logger.info("this user has no home folder; HOME=%s serves instead", os.environ["HOME"])
    elif cannot_write(Path.home()):
        for variable, name in CACHES.items():
            os.environ.setdefault(variable, str(_own_folder() / name))


def _own_folder() -> Path:
    """Return a folder for temporary files that only this user can write; it is kept."""
    folder = Path(tempfile.gettempdir(), f"autoselect-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="autoselect-"))
    return folder
