"""The benchmark of the loader: what it can measure, and that its parts run."""

import sys

import bench_loader
import pytest

from autoselect.data.shards import ShardSet


@pytest.mark.parametrize("cores", [1, 4])
def test_a_round_too_small_for_a_rate_is_refused(monkeypatch, capsys, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    least = bench_loader.fewest(cores)
    monkeypatch.setattr(sys, "argv", ["bench_loader.py", "--count", str(least - 1)])
    with pytest.raises(SystemExit) as error:
        bench_loader.main()
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert f"--count {least - 1} is too small to measure" in said
    assert said.endswith(f"give at least {least}\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_smallest_round_has_a_rate(tmp_path, workers):
    images = [bench_loader.photo(number, 80, 60) for number in range(4)]
    bench_loader.write_data(tmp_path, images)
    count = bench_loader.fewest(workers)
    assert bench_loader.loader(ShardSet.open(str(tmp_path)), count, workers).images_per_s > 0
    assert bench_loader.decode(images, count, 1, 16).images_per_s > 0
