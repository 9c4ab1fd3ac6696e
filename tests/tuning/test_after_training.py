"""The search at the end of a training, on ranks that share the output folder and on others."""

import json

import pytest

from tests.launching import launch


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_that_do_not_see_the_folder_of_rank_0_leave_the_search_to_it(tmp_path, shared):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (first / "config.yaml").write_text("train: {tune_images: 3, tracking: false}\n")
    launch(2, "tune_worker.py", str(first), str(first if shared else second))
    called = [json.loads((first / f"called-{rank}.json").read_text()) for rank in (0, 1)]
    together = [[[0, 2, True]], [[1, 2, True]]]
    assert called == (together if shared else [[[0, 1, False]], []])
    assert not list(first.glob("shared-*")), "the mark is removed"
