"""`autoselect shards ...`: exit codes and what is printed."""

import argparse
import errno
import json
import os
from pathlib import Path

import pytest
import webdataset

from autoselect.cli.main import main
from autoselect.config import ConfigError
from autoselect.data.commands import add_shards_commands
from autoselect.data.index import sidecar
from autoselect.data.parallel import map_processes
from autoselect.data.shards import ShardSet, ShardWriter
from tests.data.shard_samples import make_image, make_record, write_shards


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_shards_commands(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["shards", *map(str, words), "--workers", "1"])
    return arguments.run(arguments)


def damage(shard: Path, position: int) -> None:
    content = bytearray(shard.read_bytes())
    content[position] ^= 1
    shard.write_bytes(content)


def test_index_and_verify_an_intact_folder(shard_folder: Path, capsys) -> None:
    for shard in shard_folder.glob("*.tar"):
        Path(sidecar(str(shard))).unlink()
    assert call("verify", shard_folder) == 1
    assert "run `autoselect shards index`" in capsys.readouterr().out
    assert call("index", shard_folder) == 0
    size = sum(path.stat().st_size for path in shard_folder.glob("*.tar"))
    assert capsys.readouterr().out == f"3 shards, 50 samples, {size} bytes, 0 faults\n"
    assert call("verify", shard_folder, "--decode") == 0
    assert capsys.readouterr().out == "3 shards, 50 samples, 0 faults\n"


def test_verify_names_damage(shard_folder: Path, capsys) -> None:
    shard = shard_folder / "shard-000001.tar"
    damage(shard, 600)
    assert call("verify", shard_folder) == 1
    out = capsys.readouterr().out
    assert f"{shard}: sample '000020' at byte 0: payload" in out
    assert out.endswith("3 shards, 50 samples, 1 faults\n")


def test_index_names_damage_and_can_be_rebuilt(shard_folder: Path, capsys) -> None:
    shard = shard_folder / "shard-000002.tar"
    damage(shard, 3)
    assert call("index", shard_folder) == 0
    assert call("index", shard_folder, "--rebuild") == 1
    out = capsys.readouterr().out
    assert f"{shard}: sample '' at byte 0: header" in out
    assert f"{shard}: sample '000040'" in out


@pytest.mark.parametrize("samples", [4, 8, 12], ids=["smaller", "as large", "larger"])
def test_the_index_of_another_file_is_named_and_can_be_rebuilt(
    tmp_path: Path, samples: int, capsys
) -> None:
    shard = write_shards(tmp_path / "data", samples=8) / "shard-000000.tar"
    size = shard.stat().st_size
    with ShardWriter(tmp_path / "other") as writer:
        for number in range(samples):
            writer.write(f"other-{number}", make_record(number), [make_image(number)])
    shard.write_bytes((tmp_path / "other" / shard.name).read_bytes())
    if samples != 8:
        with pytest.raises(ConfigError, match=f"says {size}: .*another file; .* index --rebuild`"):
            call("index", shard)
    assert call("verify", shard) == 1
    out = capsys.readouterr().out
    assert "the index belongs to another file" in out and out.endswith(" 1 faults\n")
    assert call("index", shard, "--rebuild") == 0
    assert call("verify", shard) == 0
    assert f"1 shards, {samples} samples" in capsys.readouterr().out


def test_caps_of_an_index_hold_for_all_who_read_the_shard(tmp_path: Path, capsys) -> None:
    folder = write_shards(tmp_path / "data", samples=3)
    digest = ShardSet.open(str(folder)).digest
    assert call("index", folder, "--rebuild", "--max-pixels", "383") == 0
    assert call("verify", folder) == 0
    assert call("verify", folder, "--decode") == 1
    assert "24 x 16 pixels exceed the cap of 383 pixels" in capsys.readouterr().out
    assert list(ShardSet.open(str(folder)).usable()) == []
    assert call("index", folder, "--rebuild", "--max-pixels", "384") == 0
    assert call("verify", folder, "--decode") == 0
    assert len(list(ShardSet.open(str(folder)).usable())) == 3
    assert ShardSet.open(str(folder)).digest == digest


def test_duplicate_keys_across_shards_are_refused(shard_folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "again", samples=2)
    for command in ("index", "verify"):
        with pytest.raises(ConfigError, match="key='000000' is in .* and again in"):
            call(command, shard_folder, tmp_path / "again")


def test_indexes_may_lie_elsewhere(shard_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "indexes"
    before = sorted(shard_folder.iterdir())
    assert call("index", shard_folder, "--index-folder", elsewhere) == 0
    assert call("verify", shard_folder, "--index-folder", elsewhere) == 0
    assert len(list(elsewhere.iterdir())) == 3 and sorted(shard_folder.iterdir()) == before


def test_convert_reports_rows_and_keeps_to_its_budget(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jpg").write_bytes(make_image(0))
    rows = [make_record(0) | {"image": name} for name in ("a.jpg", "missing.jpg")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = (tmp_path / "rows.json", "--images", tmp_path, "--output", tmp_path / "out")
    assert call("convert-llava", *words) == 1
    out, error = capsys.readouterr()
    assert out == "2 rows, 1 samples in 1 shards, 1 rejected\n1 of 1 samples have pictures\n"
    assert error.startswith(
        "autoselect: max_rejected=0.001 is exceeded: 1 of 2 rows cannot be used, the first is "
        "row 1 (image 'missing.jpg' is not in"
    )
    listed = tmp_path / "out" / "rejected.jsonl"
    assert error.endswith(
        f"); correct the rows that {listed} lists, then convert into an empty folder; or go on "
        "without them: --max-rejected 0.5\n"
    )
    assert call("convert-llava", *words, "--max-rejected", "0.5") == 0
    out, error = capsys.readouterr()
    assert f"rejected rows are listed in {listed}\n" in out and not error


@pytest.mark.parametrize("share", ["5", "-1", "nan", "many"])
def test_the_share_of_rejected_rows_is_a_fraction(share: str, tmp_path: Path, capsys) -> None:
    words = (tmp_path / "rows.json", "--images", tmp_path, "--output", tmp_path / "out")
    with pytest.raises(SystemExit):
        call("convert-llava", *words, "--max-rejected", share)
    said = f"--max-rejected: {share} is not a fraction of 0..1; give 0.05 for 5 %"
    assert said in capsys.readouterr().err


def test_convert_says_how_many_samples_have_pictures(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jpg").write_bytes(make_image(0))
    rows = [make_record(0) | {"image": "a.jpg"}, make_record(1, 0), make_record(2, 0)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = (tmp_path / "rows.json", "--images", tmp_path, "--output", tmp_path / "out")
    for _ in range(2):
        assert call("convert-llava", *words) == 0
        said = "1 of 3 samples have pictures; 2 are text only and train nothing\n"
        assert said in capsys.readouterr().out


def test_convert_says_what_it_did_not_read_again(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jpg").write_bytes(make_image(0))
    rows = [make_record(0) | {"image": name} for name in ("a.jpg", "late.jpg", "a.jpg")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = (tmp_path / "rows.json", "--images", tmp_path, "--max-rejected", "0.5")
    words = (*words, "--samples-per-shard", "2", "--output", tmp_path / "out")
    assert call("convert-llava", *words) == 0
    assert "earlier" not in capsys.readouterr().out
    (tmp_path / "late.jpg").write_bytes(make_image(1))
    (tmp_path / "out" / "shard-000001.tar").unlink()
    for earlier in (1, 2):
        assert call("convert-llava", *words) == 0
        out = capsys.readouterr().out
        assert "3 rows, 2 samples in 2 shards, 1 rejected" in out
        assert f"\n{earlier} shards were finished earlier and were not read again; " in out


def test_convert_names_rows_without_an_answer(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jpg").write_bytes(make_image(0))
    rows = [make_record(number) | {"image": "a.jpg"} for number in range(5)]
    for number in (1, 3):
        del rows[number]["conversations"][1:]
    rows[3]["conversations"].insert(0, {"from": "gpt", "value": "Ask me."})
    silent_text = make_record(5, 0)
    del silent_text["conversations"][1:]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, silent_text]))
    words = (tmp_path / "rows.json", "--images", tmp_path, "--output", tmp_path / "out")
    for _ in range(2):
        assert call("convert-llava", *words) == 0
        out = capsys.readouterr().out
        assert "\n2 samples have pictures but no answer, the first is row 1: evaluation can" in out
        assert "data.quarantine_budget; for training, leave these rows out" in out
    assert call("verify", tmp_path / "out", "--decode") == 0
    assert call("index", tmp_path / "out", "--rebuild") == 0
    assert ShardSet.open(str(tmp_path / "out")).unanswered == 2


def test_a_full_disk_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(webdataset.TarWriter, "write", full)
    (tmp_path / "rows.json").write_text(json.dumps([make_record(0, 0)]))
    words = (tmp_path / "rows.json", "--images", tmp_path, "--output", tmp_path / "out")
    assert main(["shards", "convert-llava", *map(str, words), "--workers", "1"]) == 1
    shard = tmp_path / "out" / "shard-000000.tar"
    said = f"No space left on device: '{shard}'; free some space and run it again\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_worker_that_is_killed_is_told_with_its_fix() -> None:
    """The system kills a process when the memory is full."""
    with pytest.raises(ConfigError, match=r"workers=2: .* killed.*fewer --workers"):
        list(map_processes(os._exit, [1, 2], 2, "converting"))
