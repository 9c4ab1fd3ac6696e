"""Files that are replaced as a whole or not at all."""

import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from autoselect.files import atomic
from autoselect.files.atomic import replacing, write_bytes, write_text


@pytest.fixture
def target(tmp_path):
    """Return a file with old content, alone in its folder."""
    path = tmp_path / "note.json"
    path.write_text("old")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_streams_replace_the_content(target):
    write_text(target, "ä")
    assert target.read_bytes() == "ä".encode()
    write_bytes(str(target), b"\x00\x01")
    assert target.read_bytes() == b"\x00\x01"
    with replacing(target) as stream:
        stream.write(b"one ")
        assert target.read_bytes() == b"\x00\x01"
        stream.write(b"two")
    assert target.read_bytes() == b"one two"
    assert names(target.parent) == ["note.json"]


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "note.json", "new")
    assert (tmp_path / "a" / "b" / "note.json").read_text() == "new"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(target, error):
    with pytest.raises(type(error)), replacing(target) as stream:
        stream.write(b"half")
        raise error
    assert target.read_text() == "old" and names(target.parent) == ["note.json"]


def test_an_error_about_a_full_disk_names_the_file(target):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=re.escape(f"left on device: '{target}'")) as caught:
        with replacing(target) as stream:
            stream.write(b"half")
            raise full
    assert caught.value.errno == errno.ENOSPC and caught.value.__cause__ is full
    assert target.read_text() == "old" and names(target.parent) == ["note.json"]


def test_a_failed_rename_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "note.json").mkdir()  # in the way of the file
    with pytest.raises(OSError):
        write_text(tmp_path / "note.json", "new")
    assert names(tmp_path) == ["note.json"]


KILLED = """
import os, sys
from autoselect.files.atomic import replacing
with replacing(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), 9)
"""


def test_a_kill_in_the_middle_leaves_the_old_file(target):
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_what_a_killed_process_left_is_removed_a_day_later(target, monkeypatch):
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    (left,) = target.parent.glob("*.partial")
    fresh = target.with_name(f"other.json.{'0' * 16}.partial")
    fresh.write_text("another process writes it now")
    foreign = target.with_name("mine.partial")
    foreign.write_text("somebody else's")
    old = time.time() - 2 * atomic.ABANDONED_SECONDS
    for path in (left, foreign):
        os.utime(path, (old, old))
    atomic._remove_abandoned.cache_clear()
    write_text(target, "new")
    assert names(target.parent) == sorted(["note.json", fresh.name, "mine.partial"])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(target, umask):
    before = os.umask(umask)
    try:
        write_text(target, "new")
        plain = target.with_name("plain")
        plain.write_text("new")
    finally:
        os.umask(before)
    assert target.stat().st_mode == plain.stat().st_mode


def test_file_and_folder_are_flushed_around_the_rename(target, monkeypatch):
    """In this order: content, name, folder."""
    calls = []
    real_sync, real_replace = os.fsync, type(target).replace

    def sync(handle):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        real_sync(handle)

    def replace(path, to):
        calls.append("rename")
        return real_replace(path, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(type(target), "replace", replace)
    write_text(target, "new")
    assert calls == ["file", "rename", "folder"]
