"""Finished steps are not repeated, killed cells resume, and mixed results are refused."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from autoselect.ablation import tracked
from autoselect.ablation.cells import Cell, evaluate_baselines, run_cell
from autoselect.ablation.collect import collect
from autoselect.ablation.run import write
from autoselect.ablation.tables import NOT_MEASURED, TABLES, baseline_table
from autoselect.ablation.tracked import _columns
from autoselect.ablation.variants import load_plan
from autoselect.cli.main import main
from autoselect.config import ConfigError
from autoselect.pruning.selector import Selector


def test_a_killed_ablation_goes_on_and_gives_the_same_result(plan, programs, run_all, tmp_path):
    whole = run_all(plan, tmp_path / "whole" / "out")
    calls = list(programs.calls)
    assert len(calls) == len(set(calls)) == 9 + 6 + 6 + 1, "two cells share a selector"
    for killed_at in (2, 6, 9):
        programs.calls, programs.fail_at = [], killed_at
        out = tmp_path / f"k-{killed_at}" / "out"
        with pytest.raises(KeyboardInterrupt):
            run_all(plan, out)
        programs.fail_at = None
        again = run_all(plan, out)
        assert len(programs.calls) == len(calls) + 1, "only the killed step is begun a second time"
        assert again == whole


@pytest.fixture
def tuned(config):
    """Return the plan with a search behind every training."""
    config.write_text(config.read_text().replace("tune_images: 0", "tune_images: 3"))
    return load_plan(config)


def test_a_training_that_ended_before_its_search_goes_on(tuned, programs, tmp_path):
    """The selector is exported before the search, which a signal may end."""
    programs.tunes = False
    with pytest.raises(ConfigError, match=r"channel/seed-0 is not trained .*tune_images=3 asks"):
        run_cell(tuned, tmp_path, tuned.variant("channel"), 0)
    programs.tunes, programs.calls = True, []
    assert run_cell(tuned, tmp_path, tuned.variant("channel"), 0).is_finished
    assert [call[0] for call in programs.calls] == ["train", "eval", "leak"]


def test_a_cell_that_was_finished_without_its_search_is_tuned(tuned, programs, tmp_path):
    """Versions before this rule evaluated such selectors as tuned ones."""
    cell = run_cell(tuned, tmp_path, tuned.variant("channel"), 0)
    selector = cell.folder / "train" / "selector" / "config.json"
    config = json.loads(selector.read_text())
    del config["training"]["tuning"]
    selector.write_text(json.dumps(config))
    programs.calls, programs.diversity = [], 0.5
    run_cell(tuned, tmp_path, tuned.variant("channel"), 0)
    assert [call[0] for call in programs.calls] == ["train", "eval", "leak"]
    programs.calls = []
    shutil.rmtree(cell.folder / "train")
    run_cell(tuned, tmp_path, tuned.variant("channel"), 0)
    assert programs.calls == [], "a note alone is finished"


@pytest.mark.parametrize("changed", ["weights", "diversity"])
@pytest.mark.parametrize("killed", [False, True])
def test_another_selector_is_measured_anew(plan, programs, tmp_path, changed, killed):
    """It was trained or tuned again in the same folder; settings and paths are the same."""
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    first = cell.read()
    if killed:
        cell.note.unlink()
    selector = Selector.from_pretrained(cell.folder / "train" / "selector")
    if changed == "diversity":
        selector.diversity = 0.5
    else:
        next(selector.parameters()).data.add_(1)
    selector.save_pretrained(cell.folder / "train" / "selector")
    programs.calls = []
    second = run_cell(plan, tmp_path, plan.variant("channel"), 0).read()
    assert [call[0] for call in programs.calls] == ["eval", "leak"]
    assert second["selector"] != first["selector"]
    programs.calls = []
    run_cell(plan, tmp_path, plan.variant("channel"), 0)
    assert programs.calls == []


def test_metadata_alone_do_not_make_another_selector(plan, programs, tmp_path):
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    selector = Selector.from_pretrained(cell.folder / "train" / "selector")
    selector.metadata["scores"] = None
    selector.save_pretrained(cell.folder / "train" / "selector")
    programs.calls = []
    run_cell(plan, tmp_path, plan.variant("channel"), 0)
    assert programs.calls == []


@pytest.mark.parametrize(("older", "repeated"), [(False, []), (True, ["eval", "leak"])])
def test_a_cell_of_an_earlier_version_is_of_a_selector_older_than_it(
    plan, programs, tmp_path, older, repeated
):
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    for record in (cell.note, *cell.folder.glob("*/measured.json")):
        known = json.loads(record.read_text())
        del known["selector"]
        record.write_text(json.dumps(known))
    written = (cell.folder / "train" / "selector" / "config.json").stat().st_mtime
    os.utime(cell.note, (written + 1 - 2 * older,) * 2)
    programs.calls = []
    run_cell(plan, tmp_path, plan.variant("channel"), 0)
    assert [call[0] for call in programs.calls] == repeated


def test_baselines_are_those_of_any_selector(plan, programs, tmp_path):
    evaluate_baselines(plan, tmp_path, run_cell(plan, tmp_path, plan.variant("channel"), 0))
    (tmp_path / "baselines" / "cell.json").unlink()
    programs.weights, programs.calls = 1, []
    evaluate_baselines(plan, tmp_path, run_cell(plan, tmp_path, plan.variant("reference"), 0))
    assert [call[0] for call in programs.calls] == ["train", "eval", "leak"]


def test_a_cell_is_logged_once_for_each_selector(plan, programs, tmp_path, monkeypatch):
    began = []

    class Recorded:
        @staticmethod
        def disabled():
            return None

        @staticmethod
        def start(experiment, name, *_, **__):
            began.append(name)
            run = SimpleNamespace(run_id=f"run {len(began)}", log_metrics=lambda _: None)
            run.log_artifact = run.finish = lambda *_: None
            return run

    monkeypatch.setattr(tracked, "Tracker", Recorded)
    monkeypatch.setattr(tracked, "_metrics", lambda *_: {})
    plan = dataclasses.replace(plan, tracking=True)
    for weights in (0, 0, 1):
        if weights != programs.weights:
            shutil.rmtree(tmp_path / "cells" / "channel" / "seed-0" / "train")
            (tmp_path / "cells" / "channel" / "seed-0" / "cell.json").unlink()
        programs.weights = weights
        cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
        tracked.AblationRecord(plan, tmp_path).cell(cell)
    assert began.count("channel, seed 0") == 2


def test_a_finished_ablation_starts_nothing(plan, programs, run_all, tmp_path):
    run_all(plan, tmp_path)
    programs.calls = []
    run_all(plan, tmp_path)
    assert programs.calls == []


def test_the_notes_alone_are_an_ablation_that_goes_on(plan, programs, run_all, tmp_path):
    """A copy of the `cell.json` files gives the same tables, and no cell is repeated."""
    found = run_all(plan, tmp_path / "out")
    kept = tmp_path / "kept"
    for note in (tmp_path / "out").rglob("cell.json"):
        place = kept / note.relative_to(tmp_path / "out")
        place.parent.mkdir(parents=True)
        place.write_bytes(note.read_bytes())
    assert collect(plan, kept) == found
    programs.calls = []
    assert run_all(plan, kept) == found
    assert programs.calls == []


def test_a_setting_that_is_new_since_repeats_nothing(plan, programs, tmp_path):
    """A cell from before the setting existed was trained with what is now its default."""
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    note = cell.read()

    def without(setting):
        older = {k: v for k, v in note["training"].items() if k != setting}
        kept = tmp_path / setting / cell.note.relative_to(tmp_path)
        kept.parent.mkdir(parents=True)
        kept.write_text(json.dumps({**note, "training": older}))
        programs.calls = []
        run_cell(plan, tmp_path / setting, plan.variant("channel"), 0)
        assert programs.calls == []

    without("gate.site")
    with pytest.raises(ConfigError, match="gate.noise: covariance -> channel"):
        without("gate.noise")


def test_a_cell_of_another_global_batch_is_refused(plan, programs, tmp_path):
    """The batch stands in the DeepSpeed file, beside the settings of the training."""
    run_cell(plan, tmp_path, plan.variant("channel"), 0)
    wider = tmp_path / "wider.json"
    values = json.loads(plan.deepspeed_file.read_text())
    wider.write_text(json.dumps({**values, "train_batch_size": 2 * values["train_batch_size"]}))
    plan = dataclasses.replace(plan, deepspeed=str(wider))
    with pytest.raises(
        ConfigError, match=r"trained with other settings \(train_batch_size: 32 -> "
    ):
        run_cell(plan, tmp_path, plan.variant("channel"), 0)


def test_a_note_from_before_the_batch_was_noted_is_kept(plan, programs, tmp_path):
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    older = cell.read()
    for name in ("train_batch_size", "gradient_clipping", "optimizer.type"):
        del older["training"][name]
    kept = tmp_path / "kept" / cell.note.relative_to(tmp_path)
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps(older))
    programs.calls = []
    run_cell(plan, tmp_path / "kept", plan.variant("channel"), 0)
    assert programs.calls == []


def test_more_images_repeat_the_evaluation_and_not_the_training(plan, programs, tmp_path):
    run_cell(plan, tmp_path, plan.variant("channel"), 0)
    programs.calls = []
    run_cell(dataclasses.replace(plan, images=60), tmp_path, plan.variant("channel"), 0)
    assert [call[0] for call in programs.calls] == ["eval"]


def test_another_budget_of_the_leak_replaces_the_measure_of_the_cell(plan, programs, tmp_path):
    """`analyse` and `eval` replace no results of other settings; those of a cell are its own."""
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    assert "settings" not in cell.read()["outcome"]["leak"], "which name folders of this machine"
    programs.calls = []
    run_cell(dataclasses.replace(plan, leak_budget=3), tmp_path, plan.variant("channel"), 0)
    assert [call[0] for call in programs.calls] == ["leak"]


def test_a_cell_that_was_trained_otherwise_is_refused(plan, programs, tmp_path):
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    assert cell.is_finished
    with pytest.raises(
        ConfigError, match=r"trained with other settings \(steps: 4 -> 5\); choose another"
    ):
        run_cell(dataclasses.replace(plan, steps=5), tmp_path, plan.variant("channel"), 0)


@pytest.mark.parametrize(("first", "then"), [("reference", "again"), ("again", "reference")])
def test_a_selector_that_was_trained_otherwise_is_not_shared(plan, programs, tmp_path, first, then):
    run_cell(plan, tmp_path, plan.variant(first), 0)
    with pytest.raises(ConfigError, match="reference/seed-0 holds a cell trained with other"):
        run_cell(dataclasses.replace(plan, steps=5), tmp_path, plan.variant(then), 0)
    assert [call[0] for call in programs.calls].count("train") == 1
    run_cell(plan, tmp_path, plan.variant(then), 0)


def test_a_baseline_without_one_of_the_budgets_has_a_dash_there(plan, programs, run_all, tmp_path):
    found = run_all(plan, tmp_path)
    del found["variants"][0]["against"]["divprune"]["8"]
    (row,) = (line for line in baseline_table(found, ["reference"]) if "divprune" in line)
    assert row.endswith(" | – |")


def test_a_note_alone_is_never_lost_to_another_training(plan, programs, tmp_path):
    """A copy that holds only `cell.json` is refused like the full cell, and is not changed."""
    cell = run_cell(plan, tmp_path, plan.variant("channel"), 0)
    kept = tmp_path / "kept" / cell.note.relative_to(tmp_path)
    kept.parent.mkdir(parents=True)
    kept.write_text(cell.note.read_text())
    longer = dataclasses.replace(plan, steps=5)
    with pytest.raises(ConfigError, match=r"trained with other settings \(steps: 4 -> 5\)"):
        run_cell(longer, tmp_path / "kept", plan.variant("channel"), 0)
    more, programs.calls, programs.fail_at = dataclasses.replace(plan, images=60), [], 1
    with pytest.raises(KeyboardInterrupt):
        run_cell(more, tmp_path / "kept", plan.variant("channel"), 0)
    assert kept.read_text() == cell.note.read_text(), "until the new outcome is there"


def test_baselines_of_another_model_are_left_out_and_evaluated_again(
    plan, programs, run_all, tmp_path, caplog
):
    run_all(plan, tmp_path)
    programs.model_digest = "other"
    for variant in plan.variants:
        shutil.rmtree(tmp_path / "cells" / variant.name)
    cell = run_cell(plan, tmp_path, plan.variant("reference"), 0)
    assert collect(plan, tmp_path)["baselines"] == []
    assert "baselines belong to another model" in caplog.text
    programs.calls = []
    evaluate_baselines(plan, tmp_path, cell)
    assert [call[0] for call in programs.calls] == ["eval"]
    assert collect(plan, tmp_path)["baselines"] != []


def test_baselines_of_other_images_are_left_out(plan, programs, tmp_path, caplog):
    """A sweep was killed between a cell with fewer images and its baselines."""
    cell = run_cell(plan, tmp_path, plan.variant("reference"), 0)
    evaluate_baselines(plan, tmp_path, cell)
    fewer = dataclasses.replace(plan, images=30)
    run_cell(fewer, tmp_path, plan.variant("reference"), 0)
    assert collect(fewer, tmp_path)["baselines"] == []
    assert "other images and are left out" in caplog.text


def test_a_variant_that_answers_otherwise_is_measured_against_its_own_full_model(
    config, programs, run_all, tmp_path
):
    """All its answers are right half as often, including those of the full model."""
    text = config.read_text().replace("{rows_per_batch: 32}", "{scoring: likelihood}")
    config.write_text(text)
    found = run_all(load_plan(config), tmp_path)
    kept = {row["name"]: row["retention"]["8"]["mean"] for row in found["variants"]}
    assert kept["again"] == pytest.approx(kept["reference"], abs=0.15), "not half of it"
    assert found["full"]["mean"] == 1


def test_cells_of_other_budgets_are_refused_by_name(plan, programs, run_all, tmp_path):
    run_all(plan, tmp_path)
    more = dataclasses.replace(plan, budgets="4,8,16")
    run_cell(more, tmp_path, plan.variant("channel"), 1)
    with pytest.raises(ConfigError, match=r"channel.*budgets \[4, 8, 16\], others at \[4, 8\]"):
        collect(more, tmp_path)


def test_differences_are_paired_and_baselines_stand_beside(plan, programs, run_all, tmp_path):
    found = run_all(plan, tmp_path)
    rows = {row["name"]: row for row in found["variants"]}
    assert found["budgets"] == [4, 8] and found["images"] == 40 and not found["missing"]
    for row in rows.values():
        value = row["retention"]["8"]
        assert len(value["seeds"]) == 3 and value["covers"] == "seeds and images"
        low, high = value["ci95"]
        assert low < value["mean"] < high
        assert row["leak"]["excess"]["with_denoiser"]["mean"] == pytest.approx(0.2)
    gap = rows["channel"]["against_reference"]["8"]
    expected = [
        a - b
        for a, b in zip(
            rows["channel"]["retention"]["8"]["seeds"],
            rows["reference"]["retention"]["8"]["seeds"],
            strict=True,
        )
    ]
    assert gap["seeds"] == pytest.approx(expected) and gap["ci95"][1] < 0
    assert rows["reference"]["against"]["divprune"]["4"]["ci95"][0] > 0
    assert rows["reference"]["against_reference"] == {}


def test_a_question_with_a_bar_or_a_line_break_keeps_its_table_whole(config, programs, tmp_path):
    asks = "asks: 'Is |x| enough,\n\n      per channel?'"
    config.write_text(config.read_text().replace("asks: Is noise per channel enough?", asks))
    plan = load_plan(config)
    run_cell(plan, tmp_path, plan.variant("channel"), 0)
    table = TABLES["settings"](collect(plan, tmp_path), ["channel"])
    assert table[-1].startswith("| channel | Is \\|x\\| enough, per channel? | ")
    assert len(table) == 3


def test_questions_are_those_that_were_asked(plan, programs, run_all, tmp_path):
    """MME counts a score per question and one per pair, MMBench one for all rotations."""
    found = run_all(plan, tmp_path)
    assert found["questions"] == 2 * found["images"]
    for note in tmp_path.rglob("cell.json"):
        cell = json.loads(note.read_text())
        cell["outcome"]["report"]["questions"] = 999
        note.write_text(json.dumps(cell))
    assert collect(plan, tmp_path)["questions"] == 999
    for note in tmp_path.rglob("cell.json"):
        cell = json.loads(note.read_text())
        del cell["outcome"]["report"]["questions"]  # of an earlier version
        note.write_text(json.dumps(cell))
    assert collect(plan, tmp_path)["questions"] == 2 * found["images"]


def test_nothing_unmeasured_looks_measured(plan, programs, tmp_path):
    run_cell(plan, tmp_path, plan.variant("channel"), 1)
    found = collect(plan, tmp_path)
    assert found["missing"]["reference"] == [0, 1, 2] and found["missing"]["channel"] == [0, 2]
    for kind in set(TABLES) - {"protocol"}:
        text = TABLES[kind](found, ["reference", "channel"])
        lines = [line for line in text if line.startswith("| reference")]
        assert all(NOT_MEASURED in line for line in lines)
        if kind in ("differences", "baselines"):
            assert NOT_MEASURED in next(line for line in text if line.startswith("| channel"))
    row = next(line for line in TABLES["retention"](found, ["channel"]) if "channel" in line)
    assert row.count("\\*") == 2, "one seed: the interval covers the images only"
    assert "Not finished" in TABLES["protocol"](found, [])[0]


def test_cells_on_other_images_are_not_compared(plan, programs, tmp_path):
    run_cell(plan, tmp_path, plan.variant("reference"), 0)
    fewer = dataclasses.replace(plan, images=30)
    run_cell(fewer, tmp_path, plan.variant("channel"), 0)
    with pytest.raises(ConfigError, match="evaluated on other images than the rest"):
        collect(plan, tmp_path)


def test_seeds_and_variants_that_were_trained_otherwise_are_not_collected(plan, programs, tmp_path):
    run_cell(plan, tmp_path, plan.variant("reference"), 0)
    longer = dataclasses.replace(plan, steps=5)
    run_cell(longer, tmp_path, plan.variant("reference"), 1)
    for wanted, named in ((plan, r"seed-1 .*\(steps: 5 -> 4\)"), (longer, r"seed-0 .*4 -> 5\)")):
        with pytest.raises(ConfigError, match=f"{named}.*give the settings of the cell"):
            collect(wanted, tmp_path)


def test_a_changed_variant_is_refused_before_any_cell_runs(config, programs, tmp_path, capsys):
    plan = load_plan(config)
    run_cell(plan, tmp_path / "out", plan.variant("channel"), 0)
    config.write_text(config.read_text().replace("noise: channel", "kind: multiplicative"))
    programs.calls = []
    command = ["ablate", "--config", str(config), "--out", str(tmp_path / "out")]
    assert main([*command, "--only", "reference"]) == 2
    assert "channel/seed-0 holds a cell trained with other settings" in capsys.readouterr().err
    assert programs.calls == []


@pytest.mark.parametrize(
    ("digest", "message"),
    [
        ("data_digest", "channel/seed-0 was evaluated on other test data"),
        ("model_digest", "were trained on different weights of the model"),
        ("training_data", "reference/seed-0 and .*channel/seed-0 were .* different training data"),
    ],
)
def test_cells_on_other_data_or_weights_are_not_compared(plan, programs, tmp_path, digest, message):
    """The shards were written anew with the same names and keys, or the model was retrained."""
    run_cell(plan, tmp_path, plan.variant("reference"), 0)
    setattr(programs, digest, "made anew")
    run_cell(plan, tmp_path, plan.variant("channel"), 0)
    with pytest.raises(ConfigError, match=message):
        collect(plan, tmp_path)


@pytest.mark.parametrize("right", [0, 1])
def test_a_family_that_the_full_model_hardly_answers(plan, programs, run_all, tmp_path, right):
    """It has no retention without a right answer; with one, draws without it do not count."""
    run_all(plan, tmp_path)
    for note in tmp_path.rglob("cell.json"):
        found = json.loads(note.read_text())
        sums = found["outcome"]["scores"]["sums"]["full@0"]
        for number, own in enumerate(sums):
            own[1] = right if number == 0 else 0
        note.write_text(json.dumps(found))
    found = collect(plan, tmp_path)
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    family = found["variants"][0]["families"]["4"]["count"]
    row = TABLES["families"](found, ["reference"])[2]
    if right:
        assert family["ci95"][0] < 0.9 * family["mean"] < 1.1 * family["mean"] < family["ci95"][1]
    else:
        assert family["mean"] is None and row.endswith("| – |"), row
    columns = _columns(found)
    assert len(columns["retention at 4 tokens"]) == 3


def test_an_ablation_whose_full_model_is_never_right_is_collected(plan, programs, tmp_path):
    cell = run_cell(plan, tmp_path, plan.variant("reference"), 0)
    note = cell.read()
    sums = note["outcome"]["scores"]["sums"]
    sums["full@0"] = [[0, 0] for _ in sums["full@0"]]
    cell.note.write_text(json.dumps(note))
    found = collect(plan, tmp_path)
    write(tmp_path, found)
    json.dumps(found, allow_nan=False)
    assert _columns(found)["95 % interval at 4 tokens"] == ["–"]
    assert TABLES["seeds"](found, ["reference"])[2] == "| reference | – | – |"


def test_nothing_to_collect_is_an_error(plan, tmp_path):
    with pytest.raises(ConfigError, match="no finished cell"):
        collect(plan, tmp_path)


def test_results_are_written_as_json_and_markdown(plan, programs, run_all, tmp_path, capsys):
    found = run_all(plan, tmp_path)
    write(tmp_path, found)
    assert json.loads((tmp_path / "ablation.json").read_text()) == found
    text = (tmp_path / "ablation.md").read_text()
    assert "Is noise per channel enough?" in text and "**reference**" in text
    assert text in capsys.readouterr().out
    assert Cell.of(tmp_path, plan.variant("again"), 2).is_finished
