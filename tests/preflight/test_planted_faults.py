"""Faults of the surroundings, the store, the disk and the shard folder, each with its finding."""

import importlib.util
import json
import locale
import os
import resource
import shutil
import sqlite3
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoselect.ops import _native
from autoselect.tracking.store import ARTIFACTS, Store
from tests.preflight.planting import free_port


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return an MLflow database with one deleted experiment, and its path, made once."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = Store(f"sqlite:///{path}").client
    client.delete_experiment(client.create_experiment("gone"))
    kept = client.create_experiment("kept")
    run = client.create_run(kept).info.run_id
    client.delete_run(run)
    return path, run


@pytest.fixture
def database(template, tmp_path):
    """Return a copy of the database, as the store of the run."""
    return Path(shutil.copy(template[0], tmp_path / "mlflow.db"))


@pytest.fixture
def plant(database, template, tmp_path, monkeypatch):
    """Return what a fault is planted with."""
    return SimpleNamespace(
        database=database,
        deleted=template[1],
        patch=monkeypatch.setattr,
        set=monkeypatch.setenv,
    )


def deleted_experiment(plant):
    return {"experiment": "gone"}


def deleted_run(plant):
    note = {"train": {"identity": 1, "runs": {"train": plant.deleted}}}
    Path("run").mkdir()
    Path("run/tracking.json").write_text(json.dumps(note))


def damaged_note(plant):
    Path("run").mkdir()
    Path("run/tracking.json").write_text("[")


def old_schema(plant):
    with sqlite3.connect(plant.database) as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")


def locked_database(plant):
    connection = sqlite3.connect(plant.database, isolation_level=None)
    connection.execute("begin exclusive")
    plant.patch(Store, "holder", connection, raising=False)
    plant.patch("autoselect.tracking.store.LOCK_SECONDS", 0.0)


def damaged_database(plant):
    plant.database.write_bytes(b"this was a database" * 99)


def read_only_database(plant):
    real = sqlite3.connect

    def reading(address, **options):
        return real(address.replace("mode=rw", "mode=ro"), **options)

    plant.patch(sqlite3, "connect", reading)


def missing_driver(plant):
    if importlib.util.find_spec("psycopg2") is not None:
        pytest.skip("the driver is installed here")
    plant.set("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:secret@127.0.0.1:1/runs")


def file_store(plant):
    plant.set("MLFLOW_TRACKING_URI", "./runs-of-mlflow")
    plant.set("MLFLOW_ALLOW_FILE_STORE", "false")


def no_server(plant):
    plant.set("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")


def full_disk_of_the_store(plant):
    real, folder = tempfile.TemporaryFile, str(plant.database.parent / ARTIFACTS)
    (plant.database.parent / ARTIFACTS).mkdir()

    class Full:
        def __enter__(self):
            raise OSError(28, "No space left on device")

        def __exit__(self, *_):
            pass

    def full(*arguments, **options):
        return Full() if str(options.get("dir")) == folder else real(*arguments, **options)

    plant.patch(tempfile, "TemporaryFile", full)


def stale_extension(plant):
    def broken(name):
        raise ImportError("_C.so: undefined symbol: _ZN3c10")

    plant.patch(_native, "importlib", SimpleNamespace(import_module=broken, util=importlib.util))
    plant.patch("autoselect.ops.build_info", _native._load)


def missing_folder_for_temporary_files(plant):
    plant.set("TMPDIR", "/no/such/folder")


def foreign_library(plant):
    folder = plant.database.parent / "site" / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    plant.set("PYTHONPATH", str(folder.parent))


def read_only_home(plant):
    Path("file").touch()
    plant.set("HOME", str(Path("file").absolute() / "home"))
    plant.set("HF_HOME", "")
    plant.set("HF_HUB_CACHE", "")


def few_open_files(plant):
    plant.patch(resource, "getrlimit", lambda kind: (256, 4096))


def other_encoding(plant):
    plant.patch(locale, "getpreferredencoding", lambda do_setlocale: "ISO-8859-1")


def half_a_launcher(plant):
    plant.set("WORLD_SIZE", "8")


def variables_of_another_launcher(plant):
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}.items():
        plant.set(name, value)


def unknown_master(plant):
    plant.set("MASTER_ADDR", "no-such-host.invalid")


def tasks_unlike_devices(plant):
    plant.set("SLURM_JOB_ID", "7")
    plant.set("SLURM_NTASKS", "4")


def accelerator_that_is_not_there(plant):
    plant.set("DS_ACCELERATOR", "cuda")
    plant.patch(torch.cuda, "is_available", lambda: False)


def no_free_inode(plant):
    real = os.statvfs

    def full(place):
        found = real(place)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
        return SimpleNamespace(**fields | {"f_files": 100, "f_favail": 0})

    plant.patch(os, "statvfs", full)


def lost_checkpoints(plant):
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/latest").write_text("step-00000200")


def missing_shard_folder(plant):
    return {"data": {"train_shards": "/no/such/folder/train-*.tar"}}


def compressed_shards(plant):
    Path("packed").mkdir()
    Path("packed/train-000000.tar.gz").touch()
    return {"data": {"train_shards": "packed/train-*.tar"}}


def pointers_of_git_lfs(plant):
    Path("shards/train-000001.tar").write_text("version https://git-lfs.github.com/spec/v1\n")


FAULTS = [
    (deleted_experiment, "tracking", "deleted the experiment 'gone'", "mlflow experiments restore"),
    (deleted_run, "tracking", "somebody deleted run", "mlflow runs restore --run-id"),
    (damaged_note, "tracking", "not a note of MLflow runs; remove it", "tracking"),
    (old_schema, "tracking", "out-of-date database schema", "mlflow db upgrade"),
    (locked_database, "tracking", "database is locked", "end the process that holds"),
    (damaged_database, "tracking", "file is not a database", "from a backup"),
    (read_only_database, "tracking", "readonly database", "make the database and its folder"),
    (missing_driver, "tracking", "No module named 'psycopg2'", "pip install psycopg2-binary"),
    (file_store, "tracking", "maintenance mode", "sqlite:////FOLDER/mlflow.db"),
    (no_server, "tracking", "does not answer", "start the server, correct MLFLOW_TRACKING_URI"),
    (full_disk_of_the_store, "tracking", "No space left on device", "free some space"),
    (stale_extension, "extension", "undefined symbol", "pip install --no-build-isolation"),
    (missing_folder_for_temporary_files, "environment", "TMPDIR=/no/such", "set TMPDIR"),
    (foreign_library, "environment", "another torch", "unset PYTHONPATH"),
    (read_only_home, "environment", "home folder cannot be written", "set HF_HOME"),
    (few_open_files, "environment", "only 256 files", "ulimit -n"),
    (other_encoding, "environment", "read as ISO-8859-1", "LC_ALL=C.UTF-8"),
    (half_a_launcher, "launch", "RANK is not set although", "unset RANK WORLD_SIZE"),
    (variables_of_another_launcher, "launch", "rank 0 of 8", "unset RANK WORLD_SIZE"),
    (unknown_master, "launch", "no-such-host.invalid does not resolve", "set MASTER_ADDR"),
    (tasks_unlike_devices, "launch", "4 tasks, but --gpus=1", "one task per device"),
    (accelerator_that_is_not_there, "launch", "no GPU is visible", "unset DS_ACCELERATOR"),
    (no_free_inode, "disk", "no further file can be created", "remove files"),
    (lost_checkpoints, "output", "step-00000200", "restore the folder"),
    (missing_shard_folder, "shards", "/no/such/folder does not exist on", "data.train_shards"),
    (compressed_shards, "shards", "train-000000.tar.gz; unpack them", "data.train_shards"),
    (pointers_of_git_lfs, "shards", "pointers of git-lfs", "git lfs pull"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0].__name__)
def test_a_planted_fault_is_found_and_its_fix_is_named(run, plant, fault):
    put, name, found, fix = fault
    changes = put(plant) or {}
    before = plant.database.read_bytes()
    _, findings = run(**changes)
    usual = {"extension"} if name != "extension" else set()
    usual |= {"epochs"} if name == "shards" else set()  # samples cannot be counted then
    wrong = {n for n, finding in findings.items() if finding["status"] != "ok"} - usual
    assert wrong == {name}, findings
    assert found in findings[name]["found"]
    assert fix in findings[name]["fix"]
    assert "TOKEN" not in findings[name]["fix"] and "secret" not in findings[name]["found"]
    assert plant.database.read_bytes() == before
