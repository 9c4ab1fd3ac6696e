"""`make setup` with fakes of Python and pip: no setting of the user misplaces a package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAKE_PYTHON = """#!/bin/bash
# The interpreter that makes an environment, and the one in it.
case "$*" in
    "-I -m venv "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-I -m pip config list") printf '%s' "$SETTINGS" ;;
    "-I -m pip "*install*)
        echo "pip $*" >> "$LOG"
        env | grep -E '^(PIP_|PYTHON)' >> "$LOG"
        exit "${PIP_CODE:-0}" ;;
    *) exec "$REAL" "$@" ;;
esac
"""


class SetUp:
    """A checkout with fakes, in a folder whose name has a space."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "a project", folder / "log"
        self.folder.mkdir()
        shutil.copy(ROOT / "Makefile", self.folder)
        (self.folder / "requirements.lock").write_text("# pinned\n\npackaging>=1\n")
        for name, text in (("python", FAKE_PYTHON), ("c++", "#!/bin/sh\nexit 0\n")):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.tools = folder

    def make(self, target: str, torch: str = "packaging", **environment: str):
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP", "MAKE"))}
        fakes = {"LOG": str(self.log), "REAL": sys.executable, "SETTINGS": ""}
        return subprocess.run(
            ["make", target, f"TORCH={torch}", f"PYTHON={self.tools / 'python'}"],
            cwd=self.folder,
            env=plain | fakes | {"CXX": str(self.tools / "c++")} | environment,
            capture_output=True,
            text=True,
        )

    def is_marked(self, name: str) -> bool:
        return (self.folder / ".venv" / name).exists()


@pytest.fixture
def setting_up(tmp_path):
    made = SetUp(tmp_path)
    # The fakes answer for every package that the real interpreter has.
    text = (made.folder / "Makefile").read_text().replace(",setuptools wheel ", ",packaging ")
    (made.folder / "Makefile").write_text(text)
    return made


def test_the_users_settings_of_pip_and_python_do_not_reach_it(setting_up):
    sent = {
        **{"PIP_USER": "1", "PIP_TARGET": "/x", "PIP_PREFIX": "/x", "PIP_ROOT": "/x"},
        **{"PIP_DRY_RUN": "1", "PIP_NO_DEPS": "1", "PIP_REQUIRE_VIRTUALENV": "1"},
        **{"PYTHONPATH": "/x", "PYTHONUSERBASE": "/x", "PIP_INDEX_URL": "https://index.example"},
    }
    done = setting_up.make(".venv/.requirements", **sent)
    assert done.returncode == 0, done.stderr
    assert setting_up.is_marked(".torch") and setting_up.is_marked(".requirements")
    calls = setting_up.log.read_text()
    assert calls.count("--no-user") == calls.count("pip -I") == 4
    assert "PIP_INDEX_URL=https://index.example" in calls
    for name in sent.keys() - {"PIP_INDEX_URL"}:
        assert f"{name}=" not in calls


@pytest.mark.parametrize("name", ["install.target", "global.prefix", "global.dry-run"])
def test_a_pip_conf_that_sends_packages_elsewhere_is_named_before_anything_is_installed(
    setting_up, name
):
    settings = f"global.index-url='https://me:secret@index.example'\n{name}='/x'\n"
    done = setting_up.make(".venv/.torch", SETTINGS=settings)
    assert done.returncode != 0 and not setting_up.is_marked(".torch")
    assert f"pip.conf sends packages elsewhere than into .venv: {name}='/x'" in done.stderr
    assert "PIP_CONFIG_FILE" in done.stderr and "secret" not in done.stderr
    assert not setting_up.log.exists()


def test_a_failure_of_pip_names_the_settings_that_it_read_without_their_values(setting_up):
    settings = "global.extra-index-url='https://me:secret@index.example'\n:env:.no-index='1'\n"
    done = setting_up.make(".venv/.torch", SETTINGS=settings, PIP_CODE="1")
    assert done.returncode != 0 and not setting_up.is_marked(".torch")
    assert "that it read: global.extra-index-url :env:.no-index" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("torch", "lock", "said"),
    [
        ("no-such-package==2", "", "has nothing for no-such-package==2"),
        ("packaging==0.1", "", "for packaging==0.1"),
        ("./no_such_package-2.0-py3-none-any.whl", "", "has nothing for no_such_package"),
        ("packaging", "packaging>=1\nno-such-package==1\n", "has nothing for no-such-package==1"),
    ],
)
def test_what_pip_did_not_install_is_not_marked_as_done(setting_up, torch, lock, said):
    (setting_up.folder / "requirements.lock").write_text(lock)
    done = setting_up.make(".venv/.requirements", torch)
    assert done.returncode != 0 and not setting_up.is_marked(".requirements")
    assert setting_up.is_marked(".torch") == bool(lock)
    assert said in done.stderr and "pip config list" in done.stderr


def test_a_compiler_without_openmp_is_named_before_anything_is_downloaded(setting_up):
    compiler = setting_up.tools / "c++"
    compiler.write_text("#!/bin/sh\necho \"error: unsupported option '-fopenmp'\" >&2\nexit 1\n")
    done = setting_up.make(".venv/.torch")
    assert done.returncode != 0 and not (setting_up.folder / ".venv").exists()
    assert "does not build C++20 with OpenMP" in done.stdout + done.stderr
    assert "make CXX=" in done.stdout + done.stderr
