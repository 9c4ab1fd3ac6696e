"""`autoselect tune` on an untrained reference VLM: what holds whatever the weights are."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from autoselect.config import ConfigError, destinations
from autoselect.data.order import epoch_slice
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.evaluation.loading import load_selectors
from autoselect.pruning.diversity import DiversityCurve
from autoselect.pruning.selector import Selector
from autoselect.reference.jpeg import to_jpeg
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_shards
from autoselect.tuning import run as tuning_run
from autoselect.tuning.run import tune
from autoselect.tuning.samples import tuning_samples
from autoselect.tuning.settings import TuneSettings


@pytest.fixture
def settings(model_folder, selector_folder, shards, tmp_path):
    shutil.copytree(selector_folder, tmp_path / "selector")
    return TuneSettings(
        model=model_folder,
        selector=str(tmp_path / "selector"),
        shards=shards,
        budgets="4,11%",
        weights="0,0.5,0.9",
        images=4,
        questions=2,
        images_per_part=2,
        max_new_tokens=3,
        tracking=False,
    )


def test_the_best_weight_of_each_budget_is_written_into_the_selector(settings):
    folder = Path(settings.selector)
    weights = (folder / "selector.safetensors").read_bytes()
    tuning = tune(settings)
    report = json.loads((folder.parent / "tune" / "tune.json").read_text())
    assert report["images"] == 4 and report["questions"] == 8 and report["held_out"] == 4
    assert report["budgets"] == [4, 16] and list(report["weights"]) == ["0", "0.5", "0.9"]
    for number, row in enumerate(report["best"]):
        tried = [rows[number] for rows in report["weights"].values()]
        assert row["agreement"] == max(one["agreement"] for one in tried)
    assert (folder.parent / "tune" / "tune.png").stat().st_size > 1000
    assert (folder / "selector.safetensors").read_bytes() == weights
    loaded = Selector.from_pretrained(folder)
    assert loaded.relevance == "rank" and loaded.diversity == tuning.selector.diversity
    if isinstance(loaded.diversity, DiversityCurve):
        points = [(point.share, point.weight) for point in loaded.diversity.points]
        assert points == [(row["share"], row["weight"]) for row in report["best"]]
    else:
        assert {row["weight"] for row in report["best"]} == {0.0}
    assert loaded.metadata["tuning"]["best"] == report["best"]
    assert loaded.metadata["model"] == "test"


def test_labels_are_not_read(settings, shards, tmp_path):
    """With other answers in the data, every number is the same."""
    stored = ShardSet.open(shards)
    with ShardWriter(str(tmp_path / "relabelled")) as writer:
        for index in range(len(stored)):
            sample = stored[index]
            for turn in sample.record["conversations"]:
                turn["value"] = "zebra" if turn["from"] == "gpt" else turn["value"]
            writer.write(sample.key, sample.record, [to_jpeg(sample.pictures[0])])
    first = tune(settings).report
    second = tune(dataclasses.replace(settings, shards=str(tmp_path / "relabelled"))).report
    assert first.pop("data_digest") != second.pop("data_digest")
    losses = [rows.pop("loss") for one in (first, second) for rows in every_row(one)]
    assert losses[: len(losses) // 2] == pytest.approx(losses[len(losses) // 2 :], rel=0.05)
    assert first == second


@pytest.mark.parametrize("kind", ["none", "empty", "last question open"])
def test_rows_without_answers_are_enough(settings, shards, tmp_path, kind):
    """With a training's folder too, whose comparison of removal and noise then has no answers."""
    stored = ShardSet.open(shards)
    with ShardWriter(str(tmp_path / "unlabelled")) as writer:
        for index in range(len(stored)):
            sample = stored[index]
            turns = sample.record["conversations"][: 2 if kind != "last question open" else 3]
            turns = [t for t in turns if t["from"] == "human" or kind != "none"]
            if kind == "empty":
                turns = [t | {"value": ""} if t["from"] == "gpt" else t for t in turns]
            rest = {"conversations": turns, "image": sample.record.get("image")}
            rest = {name: value for name, value in rest.items() if value is not None}
            writer.write(sample.key, rest, [to_jpeg(sample.pictures[0])])
    report = tune(dataclasses.replace(settings, shards=str(tmp_path / "unlabelled"))).report
    assert report["images"] == 4 and 4 <= report["questions"] <= 8
    chosen = tuning_samples(ShardSet.open(str(tmp_path / "unlabelled")), {}, 4, 2)
    assert chosen.has_answers == (kind == "last question open")


def test_labels_in_a_form_that_no_evaluation_takes_leave_out_no_row(settings, shards, tmp_path):
    stored = ShardSet.open(shards)
    with ShardWriter(str(tmp_path / "others")) as writer:
        for index in range(len(stored)):
            sample = stored[index]
            odd = {"answers": "yes", "tasks": 5, "boxes": [[0.1, 0.2, 0.3, 0.4]]}
            writer.write(sample.key, sample.record | odd, [to_jpeg(sample.pictures[0])])
    chosen = tuning_samples(ShardSet.open(str(tmp_path / "others")), {}, 4, 2)
    assert len(chosen.samples) == 4 and chosen.has_answers


def every_row(report):
    return [*report["best"], *(row for rows in report["weights"].values() for row in rows)]


def test_an_interrupted_search_repeats_no_finished_part(settings, monkeypatch):
    whole = tune(settings).report
    parts = list(Path(settings.selector).parent.glob("tune/parts/*/part-*.json"))
    assert len(parts) == 2
    parts[1].unlink()
    asked = []
    encode = tuning_run.AskedVLM.encode

    def counted(self, samples, *arguments):
        asked.append(len(samples))
        return encode(self, samples, *arguments)

    monkeypatch.setattr(tuning_run.AskedVLM, "encode", counted)
    again = tune(settings).report  # the selector has other weights of diversity now
    assert sum(asked) == 1 + 2, "the image whose tokens are counted, and the missing part"
    assert again == whole


def test_answers_of_another_chat_template_are_not_used_again(settings, tmp_path):
    shutil.copytree(settings.model, tmp_path / "model")
    settings = dataclasses.replace(settings, model=str(tmp_path / "model"))
    tune(settings)
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(f"{template.read_text()} ")
    tune(settings)
    stores = list(Path(settings.selector).parent.glob("tune/parts/*"))
    assert len(stores) == 2


def test_weights_of_budgets_that_are_not_searched_again_stay(settings):
    def stored():
        selector = Selector.from_pretrained(settings.selector)
        return selector, {
            row["budget"]: row["weight"] for row in selector.metadata["tuning"]["best"]
        }

    tune(dataclasses.replace(settings, budgets="4,16", weights="0.4"))
    tune(dataclasses.replace(settings, budgets="16,64", weights="0.7"))
    selector, weights = stored()
    assert weights == {4: 0.4, 16: 0.7, 64: 0.7}
    assert [point.weight for point in selector.diversity.points] == [0.4, 0.7, 0.7]
    selector.diversity = 0.2  # somebody decided otherwise, for all budgets
    selector.save_config(settings.selector)
    tune(dataclasses.replace(settings, budgets="64", weights="0.7"))
    assert stored()[1] == {64: 0.7}


def test_a_report_of_another_selector_is_not_replaced(settings, tmp_path):
    """Without `out` the report lies beside its selector, and a new search replaces it."""
    tune(settings)
    tune(dataclasses.replace(settings, budgets="4"))
    own = dataclasses.replace(settings, out=str(tmp_path / "out"))
    tune(own)
    tune(own)
    other = shutil.copytree(settings.selector, tmp_path / "other")
    before = (other / "config.json").read_bytes(), (tmp_path / "out/tune.json").read_bytes()
    with pytest.raises(ConfigError) as error:
        tune(dataclasses.replace(own, selector=str(other)))
    assert str(error.value) == (
        f"out={own.out} holds a report of other settings (selector: {own.selector} -> {other}); "
        f"choose another folder, or remove {tmp_path / 'out/tune.json'} to replace it"
    )
    assert (
        (other / "config.json").read_bytes(),
        (tmp_path / "out/tune.json").read_bytes(),
    ) == before


@pytest.mark.parametrize(("found", "stays"), [(0.0, True), (0.5, False)])
def test_scores_of_an_earlier_choice_do_not_stay_in_the_card(settings, monkeypatch, found, stays):
    selector = Selector.from_pretrained(settings.selector)
    selector.metadata["scores"] = {
        **{"model": "test", "num_tokens": 144, "full_mean": 0.5, "tasks": ["any"]},
        **{"data_digest": None, "rows": []},
    }
    selector.save_config(settings.selector)
    monkeypatch.setattr(tuning_run, "best_diversity", lambda _measured, _before: found)
    tune(settings)
    assert ("scores" in Selector.from_pretrained(settings.selector).metadata) == stays
    card = (Path(settings.selector) / "README.md").read_text()
    assert ("Not evaluated yet" in card) != stays


def test_a_folder_that_cannot_be_rewritten_is_named_before_the_search(settings, monkeypatch):
    why = "Read-only file system"
    monkeypatch.setattr(
        destinations, "cannot_write", lambda path: why * (path == Path(settings.selector))
    )
    with pytest.raises(ConfigError, match=rf"selector={settings.selector} .*\({why}\)"):
        tune(settings)


def test_a_selector_that_is_no_folder_is_refused(settings):
    with pytest.raises(ConfigError, match="selector=org/name is not a folder here"):
        tune(dataclasses.replace(settings, selector="org/name"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "0,much"}, "weights='0,much' must be numbers"),
        ({"weights": "0,1.5"}, "weights='0,1.5': diversity=1.5 must lie in 0..1"),
        ({"weights": "0,0.3333333"}, "more digits than tables and columns show"),
        ({"images": 0}, "images=0 is below 1"),
    ],
)
def test_wrong_settings_are_refused(settings, changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(settings, **changes)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    render_shards(folder, ReferenceData(train=12, val=1, test=1), workers=1)
    return ShardSet.open(str(folder / "train-*.tar"))


@pytest.mark.parametrize(("used", "held_out"), [(8, 4), (12, 0), (40, 0)])
def test_rows_that_the_training_did_not_use_come_first(rendered, used, held_out):
    training = {"data_digest": rendered.digest, "seed": 3, "samples": used}
    found = tuning_samples(rendered, training, 6, 2)
    order = epoch_slice(12, 3, 0, 0, 12).tolist()
    first = order[used:] + order[:used]
    assert [row.sample_id for row in found.rows] == first[:6]
    assert found.held_out == held_out
    assert all(len(sample.questions) == 2 for sample in found.samples)


def test_rows_whose_images_the_processor_refuses_are_left_out(rendered):
    order = epoch_slice(12, 0, 0, 0, 12).tolist()
    seen = []

    def refuses_the_first(images):
        seen.append(images)
        return "too thin" if len(seen) == 1 else None

    found = tuning_samples(rendered, {}, 3, 1, refuses_the_first)
    assert [row.sample_id for row in found.rows] == order[1:4]


def test_shards_that_the_training_never_saw_are_all_new(rendered):
    other = {"data_digest": "other", "seed": 3, "samples": 8}
    assert tuning_samples(rendered, other, 5, 1).held_out == 5
    unknown = {"data_digest": rendered.digest}
    assert tuning_samples(rendered, unknown, 5, 1).held_out == 0


def test_the_evaluator_takes_a_selectors_own_weights_beside_hard_top_k(settings):
    tuning = tune(settings)
    _, found = load_selectors(settings.model, settings.selector, "cpu", "0,own")
    assert list(found) == ["autoselect", "autoselect:diversity-own"]
    own = found["autoselect:diversity-own"]
    assert (own.diversity, own.relevance) == (tuning.selector.diversity, "rank")
    assert found["autoselect"].diversity == 0
    tokens = torch.randn(2, 144, 192, generator=torch.Generator().manual_seed(0))
    alone = Selector.from_pretrained(settings.selector)
    assert torch.equal(own.select(tokens, 9)[1], alone.select(tokens, 9)[1])


def test_ranks_share_the_images_and_the_first_one_reports(settings):
    """The second rank works while the first one waits for it."""
    alone = tune(settings).report
    shutil.rmtree(Path(settings.selector).parent / "tune")
    other = []

    def barrier():
        other.append(tune(settings, 1, 2, lambda: None))

    assert tune(settings, 0, 2, barrier).report == alone
    assert other == [None]


def test_a_folder_without_checkpoints_is_refused_before_a_question_is_asked(settings, tmp_path):
    with pytest.raises(ConfigError, match="has no usable checkpoints"):
        tune(dataclasses.replace(settings, train_run=str(tmp_path / "none")))
    assert not (Path(settings.selector).parent / "tune").exists()


def test_a_search_that_another_process_wrote_meanwhile_stays(settings, tmp_path, monkeypatch):
    own = dataclasses.replace(settings, out=str(tmp_path / "mine"))
    theirs, real = tmp_path / "mine" / "tune.json", tuning_run.measure

    def slower_than_another(*arguments):
        theirs.write_text(
            json.dumps({"settings": dataclasses.asdict(dataclasses.replace(own, budgets="8"))})
        )
        return real(*arguments)

    monkeypatch.setattr(tuning_run, "measure", slower_than_another)
    before = (Path(own.selector) / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a report of other settings \(budgets: 8 -> 4"):
        tune(own)
    assert json.loads(theirs.read_text())["settings"]["budgets"] == "8"
    assert (Path(own.selector) / "config.json").read_bytes() == before
