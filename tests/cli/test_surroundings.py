"""Commands in containers and jobs without a user account, and with an extension that is stale."""

import getpass
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from autoselect import eval as evaluation_program
from autoselect import train as training_program
from autoselect.cli import surroundings
from autoselect.cli.main import main
from autoselect.ops import _native
from autoselect.ranks import processes

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Act as a user id without an entry in passwd and without variables."""
    import pwd

    def unknown(key):
        raise KeyError(f"uid not found: {key}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (*NAMES, *surroundings.CACHES):
        monkeypatch.setenv(name, "")  # so that what is set here goes away after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    return tmp_path


def test_a_process_without_a_user_account_gets_a_name_and_a_home(nobody):
    with pytest.raises(KeyError):
        getpass.getuser()
    with pytest.raises(RuntimeError):
        Path.home()
    surroundings.settle_in()
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert Path.home() == nobody / f"autoselect-{os.getuid()}"
    assert Path.home().stat().st_mode & 0o777 == 0o700
    surroundings.settle_in()  # a second process finds the folder there
    assert Path.home() == nobody / f"autoselect-{os.getuid()}"


def test_caches_leave_a_home_that_cannot_be_written(nobody, monkeypatch):
    (nobody / "file").touch()
    monkeypatch.setenv("HOME", str(nobody / "file" / "home"))
    monkeypatch.setenv("TRITON_HOME", "/own/choice")
    surroundings.settle_in()
    assert os.environ["MPLCONFIGDIR"].startswith(f"{nobody}/autoselect-")
    assert os.environ["TRITON_HOME"] == "/own/choice"
    assert os.environ["HOME"] == str(nobody / "file" / "home")


def test_a_folder_of_somebody_else_is_not_used(nobody):
    (nobody / "elsewhere").mkdir()
    (nobody / f"autoselect-{os.getuid()}").symlink_to(nobody / "elsewhere")
    surroundings.settle_in()
    assert Path.home().parent == nobody and Path.home().name.startswith("autoselect-")
    assert not Path.home().is_symlink()


def test_a_usual_account_is_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "somebody")
    before = dict(os.environ)
    surroundings.settle_in()
    assert dict(os.environ) == before


def fake(importing=None, **built):
    """Return importlib with another extension in it, or with one that cannot be imported."""

    def import_module(name):
        if importing is not None:
            raise importing
        info = {"torch": torch.__version__.partition("+")[0], **built}
        return SimpleNamespace(build_info=lambda: info)

    return SimpleNamespace(
        import_module=import_module, util=SimpleNamespace(find_spec=lambda name: True)
    )


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        (fake(ImportError("_C.so: undefined symbol: _ZN3c10")), r"load \(_C.so: undefined symbol"),
        (fake(ImportError("_C.so: file too short\nmore")), r"load \(_C.so: file too short\)"),
        (fake(SystemError("initialization of _C failed")), "initialization of _C failed"),
        (fake(OSError("GLIBCXX_3.4.32 not found")), "GLIBCXX_3.4.32 not found"),
        (fake(torch="1.13.1"), "was built for torch 1.13.1; this is torch"),
    ],
    ids=["symbol", "cut file", "initialisation", "other system", "other torch"],
)
def test_an_extension_that_does_not_fit_is_one_sentence_with_the_rebuild_command(
    monkeypatch, extension, said
):
    monkeypatch.setattr(_native, "importlib", extension)
    with pytest.raises(ImportError, match=said) as refused:
        _native._load()
    assert "pip install --no-build-isolation -e ." in str(refused.value)
    assert "\n" not in str(refused.value) and refused.value.name == "autoselect._C"


def test_an_extension_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(_native, "importlib", fake())
    monkeypatch.setattr(_native, "OPERATORS", (*_native.OPERATORS, "later_operator"))
    monkeypatch.setattr(torch.ops, "autoselect", SimpleNamespace(hard_top_k=1))
    with pytest.raises(ImportError, match="built from other sources: it lacks .*later_operator"):
        _native._load()


def test_an_extension_of_another_python_is_named(monkeypatch, tmp_path, caplog):
    (tmp_path / "ops").mkdir()
    (tmp_path / "_C.cpython-37m-x86_64-linux-gnu.so").touch()
    absent = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(_native, "importlib", absent)
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "ops" / "_native.py"))
    monkeypatch.delenv("AUTOSELECT_REQUIRE_NATIVE", raising=False)
    assert _native._load() is None
    assert "another Python or machine (_C.cpython-37m" in caplog.text
    assert "pip install --no-build-isolation -e ." in caplog.text


EVAL_FLAGS = "--model m --selector s --shards d --budgets 4 --out o".split()


@pytest.fixture
def stale(monkeypatch):
    """Let the import of everything behind the entry points fail as a stale extension does."""

    class Stale(ModuleType):
        def __getattr__(self, name):
            raise _native._misfit("does not load (undefined symbol)")

    for name in ("ops", "training.run", "evaluation.run", "reference.resources"):
        monkeypatch.setitem(sys.modules, f"autoselect.{name}", Stale(name))
    monkeypatch.setattr(processes, "init_distributed", lambda *_: None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.mark.parametrize(
    "start",
    [
        lambda: main(["info"]),
        lambda: main(["eval", *EVAL_FLAGS]),
        lambda: evaluation_program.main(EVAL_FLAGS),
        lambda: training_program.main(["--tracking=false"]),
    ],
    ids=["info", "eval", "distributed eval", "train"],
)
def test_every_entry_point_says_how_to_build_a_stale_extension_again(stale, start, capfd, caplog):
    assert start() == 2
    said = capfd.readouterr().err + caplog.text
    assert "pip install --no-build-isolation -e ." in said and "Traceback" not in said
