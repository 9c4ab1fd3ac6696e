"""The whole evaluator on an untrained reference VLM: what holds whatever the weights are."""

import argparse
import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from autoselect.cli import main as cli
from autoselect.config import ConfigError, ScorerConfig
from autoselect.data.shards import ShardWriter
from autoselect.evaluation import commands, run
from autoselect.evaluation.answers.answering import FULL, Column, Plan, answer_part
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.likelihood import (
    Candidate,
    candidates,
    continuation_log_likelihood,
    most_likely,
)
from autoselect.evaluation.earlier import check_earlier, remove_earlier
from autoselect.evaluation.figures.style import new_figure, save
from autoselect.evaluation.latency import bench
from autoselect.evaluation.loading import load_pair, load_selectors, selector_folders
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.report.check import check_report
from autoselect.evaluation.report.files import FIGURES, remove_pictures
from autoselect.evaluation.run import evaluate, prepare
from autoselect.evaluation.samples import EvaluationSet, parse_record
from autoselect.evaluation.settings import EvalSettings
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.jpeg import to_jpeg


@pytest.fixture
def settings(model_folder, selector_folder, shards, tmp_path):
    return EvalSettings(
        model=model_folder,
        selector=selector_folder,
        shards=shards,
        budgets="4,11%",
        out=str(tmp_path / "out"),
        methods="random,oracle",
        random_seeds=1,
        tracking=False,
    )


@pytest.mark.parametrize("name", ["report.md", "figures/retention.png", "failed/failed-00.png"])
def test_files_of_somebody_else_are_not_replaced(settings, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"would replace .*{name}, which no evaluation wrote"):
        evaluate(dataclasses.replace(settings, out=str(tmp_path)))
    assert (tmp_path / name).read_text() == "mine"


def test_pictures_with_other_names_stay_in_the_folder_of_figures(tmp_path):
    kept = tmp_path / "overlays.png"
    for name in ("overlays.png", "gates.png", "my_plot.png"):
        (tmp_path / name).touch()
    remove_pictures(tmp_path, FIGURES, keep=[kept])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["my_plot.png", "overlays.png"]


def test_an_evaluation_writes_the_promised_files(settings):
    settings = dataclasses.replace(settings, latency_repeats=3)
    result = evaluate(settings)
    out = Path(settings.out)
    report = json.loads((out / "report.json").read_text())
    check_report(report)
    assert report["num_tokens"] == 144
    assert {(row["method"], row["budget"]) for row in report["rows"]} == {
        (method, budget) for method in ("autoselect", "random", "oracle") for budget in (4, 16)
    }
    assert set(report["full"]["tasks"]) == {
        "existence",
        "attribute",
        "counting",
        "relation",
        "text",
    }
    assert [row["budget"] for row in report["latency"]["pruned"]] == [4, 16]
    assert report["latency"]["repeats"] == 3
    for row in report["rows"]:
        assert row["details"].keys() == report["full"]["details"].keys() == {"existence"}
        assert row["details"]["existence"].keys() == report["full"]["details"]["existence"].keys()
        assert 0 <= row["details"]["existence"]["yes_ratio"] <= 1
    assert set(report["analyses"]["similarity"]) == {"top", "bottom", "across"}
    for name in ("retention", "similarity", "frequency"):
        assert Image.open(out / "figures" / f"{name}.png").size[0] > 500
    html = (out / "report.html").read_text()
    unknown = report["analyses"]["gates"]["left_out"]
    assert "training.gate is missing" in unknown and not (out / "figures" / "gates.png").exists()
    for page in (html, (out / "report.md").read_text()):
        assert "The analysis gates is left out: training.gate is missing" in page
    assert html.count("data:image/png;base64,") == len(list((out / "figures").iterdir()))
    assert "http://" not in html and "https://" not in html and "<script" not in html
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == report["questions"]
    assert set(json.loads(lines[0])["predictions"]) == {str(c) for c in result.plan.columns()}


def test_a_report_that_another_process_wrote_meanwhile_stays(settings, monkeypatch):
    theirs = Path(settings.out) / "report.json"
    real = run.answer_all

    def slower_than_another(*arguments):
        replies = real(*arguments)
        other = dataclasses.replace(settings, budgets="8")
        theirs.write_text(json.dumps({"settings": dataclasses.asdict(other)}))
        return replies

    monkeypatch.setattr(run, "answer_all", slower_than_another)
    with pytest.raises(
        ConfigError, match=r"holds a report of other settings \(budgets: 8 -> 4,11%"
    ):
        evaluate(dataclasses.replace(settings, methods="none"))
    assert json.loads(theirs.read_text())["settings"]["budgets"] == "8"
    assert {path.name for path in Path(settings.out).iterdir()} == {"parts", "report.json"}


def test_keeping_every_token_is_the_untouched_model(model_folder, selector_folder, shards):
    vlm, selector = load_pair(model_folder, selector_folder, "cpu")
    samples = EvaluationSet.open(shards)
    plan = Plan((selector_method(selector), METHODS["divprune"]), (144,), 144)
    answers = answer_part(AskedVLM(vlm), list(samples), plan)
    for name in ("autoselect", "divprune"):
        assert answers[str(Column(name, 144))] == answers[str(Column(FULL, 0))]


@pytest.fixture
def asked(model_folder, selector_folder):
    return AskedVLM(load_pair(model_folder, selector_folder, "cpu")[0])


def test_llm_attention_is_that_of_the_stock_model(asked, shards):
    """Every row is part of a distribution, and does not depend on the rows beside it."""
    samples = [EvaluationSet.open(shards)[0]]
    before = asked.vlm.model.model.language_model.config._attn_implementation
    encoded = asked.encode(samples)
    prompts = asked.prompts(samples, encoded, [(0, 0), (0, 4)])
    attention = torch.stack(asked.llm_attention(prompts, encoded))
    assert attention.shape == (2, 144)
    assert bool((attention > 0).all()) and bool((attention.sum(dim=1) < 1).all())
    alone = asked.llm_attention(asked.prompts(samples, encoded, [(0, 0)]), encoded)
    torch.testing.assert_close(alone[0], attention[0], atol=1e-5, rtol=1e-3)
    assert asked.vlm.model.model.language_model.config._attn_implementation == before


def test_the_likelihood_of_a_continuation_is_that_of_its_tokens_one_by_one(asked, shards):
    samples = [EvaluationSet.open(shards)[0]]
    model, tokenizer = asked.vlm.model, asked.vlm.processor.tokenizer
    encoded = asked.encode(samples)
    call = asked.call(asked.prompts(samples, encoded, [(0, 0), (0, 4)]), encoded)
    yes, no, letters = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("yes", "no", "A7")
    )
    found = continuation_log_likelihood(model, call, None, [yes, letters]).sums
    expected = []
    for row, text in enumerate((yes, letters)):
        inputs = asked.vlm.inputs(
            [samples[0].images], [asked.prompt(1, samples[0].asked((0, 4)[row]))]
        )
        total = 0.0
        for token in text:
            with torch.no_grad():
                total += float(model(**inputs).logits[0, -1].log_softmax(dim=-1)[token])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        expected.append(total)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    given = [
        continuation_log_likelihood(model, call, None, [ids, ids]).sums[0] for ids in (yes, no)
    ]
    best = "yes" if given[0] > given[1] else "no"
    assert most_likely(asked, call, None, [YES_NO, ()]) == [best, None]


def test_a_reference_is_as_likely_beside_others_and_its_end_counts(asked, shards):
    """Rows with unlike prompts and unlike numbers of kept tokens, and each row alone."""
    samples = [EvaluationSet.open(shards)[0]]
    encoded = asked.encode(samples)
    places = [(0, 0), (0, 4)]
    end = asked.vlm.processor.tokenizer.eos_token_id
    references = [
        asked.answer_ids(1, samples[0].questions[r], text) for _, r in places for text in ("red",)
    ]
    assert all(ids[-1] == end and ids.count(end) == 1 and len(ids) > 1 for ids in references)
    kept = [torch.tensor([3]), torch.arange(0, 144, 2)]
    call = asked.call(asked.prompts(samples, encoded, places), encoded)
    together = asked.losses(call, kept, references)
    for row, place in enumerate(places):
        alone = asked.call(asked.prompts(samples, encoded, [place]), encoded)
        (loss,) = asked.losses(alone, kept[row : row + 1], references[row : row + 1])
        assert together[row] == pytest.approx(loss, abs=1e-4) and loss > 0
    whole = asked.losses(call, None, references)
    assert whole != pytest.approx(together, abs=1e-3)


def test_an_answer_is_as_likely_while_it_is_generated(asked, shards):
    """So only references that were not generated take a forward pass of their own."""
    samples = [EvaluationSet.open(shards)[0]]
    encoded = asked.encode(samples)
    call = asked.call(asked.prompts(samples, encoded, [(0, 0), (0, 4)]), encoded)
    kept = [torch.tensor([3, 70]), torch.arange(0, 144, 2)]
    options = {"max_new_tokens": 5, "do_sample": False}
    found = asked.generated(call, kept, options, likelihood=True)
    forced = asked.losses(call, kept, [one.ids for one in found])
    assert [one.loss for one in found] == pytest.approx(forced, abs=1e-4)
    assert [one.text for one in found] == asked.generate(call, kept, options)


def test_answers_are_greedy_whatever_the_models_own_configuration_says(asked, shards, monkeypatch):
    samples = list(EvaluationSet.open(shards))[:2]
    plan = Plan((METHODS["grid"],), (9,), 144, max_new_tokens=3)
    before = answer_part(asked, samples, plan)
    monkeypatch.setattr(asked.vlm.model.generation_config, "num_beams", 3)
    assert answer_part(asked, samples, plan) == before


class UnlikelyAsked:
    """An asked VLM that never tells the likelihood of what it generates."""

    def __init__(self, asked):
        self._asked = asked

    def __getattr__(self, name):
        return getattr(self._asked, name)

    def generated(self, call, kept, options, likelihood=False):
        return self._asked.generated(call, kept, options)


def test_a_reply_holds_the_loss_of_the_reference_however_it_was_found(asked, shards):
    samples = list(EvaluationSet.open(shards))[:3]
    plan = Plan((METHODS["grid"],), (9,), 144, max_new_tokens=3)
    replies = answer_part(asked, samples, plan)
    forced = answer_part(UnlikelyAsked(asked), samples, plan)
    assert replies.keys() == forced.keys()
    for column, images in replies.items():
        for own, others in zip(images, forced[column], strict=True):
            for one, other in zip(own, others, strict=True):
                assert one.text == other.text
                assert one.loss == pytest.approx(other.loss, abs=1e-4)


def test_an_answer_is_counted_up_to_its_end(asked, shards, monkeypatch):
    samples = [EvaluationSet.open(shards)[0]]
    encoded = asked.encode(samples)
    call = asked.call(asked.prompts(samples, encoded, [(0, 0), (0, 4)]), encoded)
    tokenizer = asked.vlm.processor.tokenizer
    red, end = tokenizer("red", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    ends, goes_on = [*red, end, 0], (red * 9)[: len(red) + 2]
    new = torch.tensor([ends, goes_on])
    monkeypatch.setattr(
        asked.vlm.model, "generate", lambda **inputs: torch.cat([inputs["input_ids"], new], dim=1)
    )
    first, second = asked.generated(call, None, {"max_new_tokens": 9})
    assert (first.text, first.ids, first.ended) == ("red", [*red, end], True)
    assert (second.ids, second.ended) == (goes_on, False)


YES_NO = (Candidate("yes", "yes"), Candidate("no", "no"))


def test_options_are_compared_by_letter_or_by_text():
    question = "which ?\nA. red\nB. dark blue"
    letters = candidates(question, ["B"], "likelihood")
    assert letters == (Candidate("A", "A"), Candidate("B", "B"))
    texts = candidates(question, ["B"], "text_likelihood")
    assert texts == (Candidate("red", "A"), Candidate("dark blue", "B"))
    assert candidates("is there ?", ["no"], "likelihood") == YES_NO
    assert candidates("what ?", ["red"], "likelihood") == ()
    assert candidates(question, ["B"], "generation") == ()


def test_the_likeliest_option_text_is_the_one_of_the_highest_mean_token(asked, shards):
    samples = [EvaluationSet.open(shards)[0]]
    encoded = asked.encode(samples)
    call = asked.call(asked.prompts(samples, encoded, [(0, 1)]), encoded)
    texts = ["red", "dark blue A7", "green"]
    means = []
    for text in texts:
        ids = asked.vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        scored = continuation_log_likelihood(asked.vlm.model, call, None, [ids])
        means.append(float(scored.sums[0]) / len(ids))
    options = tuple(Candidate(text, letter) for text, letter in zip(texts, "ABC", strict=True))
    assert most_likely(asked, call, None, [options]) == ["ABC"[means.index(max(means))]]


def test_a_report_of_other_settings_is_not_replaced(settings, tmp_path, caplog):
    plain = dataclasses.replace(settings, methods="none", budgets="4", max_images=2)
    evaluate(plain)
    path = Path(settings.out) / "report.json"
    before = path.read_bytes()
    same = dataclasses.replace(plain, rows_per_batch=7, audit=2, selector=f"{plain.selector}/")
    check_earlier(path, same)
    for changes, listed in (
        ({"budgets": "8"}, "budgets: 4 -> 8"),
        ({"max_images": None, "diversity": "0"}, "max_images: 2 -> None, diversity: None -> 0"),
        ({"selector": "other"}, f"selector: {plain.selector} -> other"),
    ):
        with pytest.raises(ConfigError) as error:
            evaluate(dataclasses.replace(plain, **changes))
        assert str(error.value) == (
            f"out={settings.out} holds a report of other settings ({listed}); choose another "
            f"folder, or remove {path} to replace it"
        )
    assert path.read_bytes() == before
    path.write_text(json.dumps({"digests": {}}))
    caplog.clear()
    check_earlier(path, plain, rank=1)
    assert not caplog.records, "one rank warns for all"
    check_earlier(path, plain)
    assert "report.json of an earlier version, which names no settings, is replaced" in caplog.text
    path.write_text("[")
    with pytest.raises(ConfigError, match="holds a report.json that is not a report; remove"):
        check_earlier(path, plain)


def test_pictures_of_an_earlier_evaluation_are_removed(settings):
    plain = dataclasses.replace(settings, methods="none", budgets="4", max_images=2, audit=1)
    evaluate(plain)
    out = Path(settings.out)
    assert (out / "figures" / "audit.png").is_file()
    (out / "failed").mkdir()
    (out / "failed" / "failed-07.png").write_bytes(b"old")
    evaluate(dataclasses.replace(plain, audit=0))
    assert not list((out / "failed").iterdir())
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert "audit" not in figures and "retention" in figures


def test_a_result_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    figure = new_figure(2, 2)
    path = tmp_path / "retention.png"
    save(figure, path)
    before = path.read_bytes()

    def full(stream, **more):
        stream.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="no space left"):
        save(figure, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"settings": {"budgets": "4", "out": "elsewhere"}}', True),
        ('{"settings": {"budgets": "8"}}', False),
        ("{}", True),
        ("[", False),
    ],
)
def test_a_report_that_would_be_refused_is_removed_by_the_owner_of_its_folder(text, kept, tmp_path):
    path = tmp_path / "report.json"
    remove_earlier(path, {"budgets": "4"})
    path.write_text(text)
    remove_earlier(path, {"budgets": "4"})
    assert path.exists() == kept
    check_earlier(path, {"budgets": "4"})


def test_unknown_scoring_is_refused(settings):
    with pytest.raises(ConfigError, match="scoring='luck' is unknown; choose one of generation"):
        evaluate(dataclasses.replace(settings, scoring="luck"))


def test_likelihood_scoring_answers_yes_or_no_where_that_is_asked(settings):
    few = {"methods": "none", "max_images": 3}
    result = evaluate(dataclasses.replace(settings, scoring="likelihood", **few))
    for sample, texts in zip(result.samples, result.answers["autoselect@4#0"], strict=True):
        turn = sample.tasks.index("existence")
        assert texts[turn] in ("yes", "no")


def test_budgets_above_the_tokens_are_refused_before_anything_runs(settings):
    with pytest.raises(ConfigError, match="budget=145 exceeds the 144 visual tokens"):
        evaluate(dataclasses.replace(settings, budgets="8,145"))
    assert not Path(settings.out).exists()


def test_several_selectors_stand_in_one_report(settings, selector_folder, tmp_path):
    """The second is the first with diversity: rows of both, and the paired difference."""
    second = Selector.from_pretrained(selector_folder)
    second.diversity = 0.5
    second.save_pretrained(tmp_path / "diverse")
    both = f"{selector_folder},spread={tmp_path / 'diverse'}"
    result = evaluate(dataclasses.replace(settings, selector=both, methods="none", max_images=2))
    rows = {(row["method"], row["budget"]): row for row in result.report["rows"]}
    assert {name for name, _ in rows} == {"autoselect", "autoselect:spread"}
    assert {row["against"] for row in result.report["intervals"]} == {"autoselect:spread"}
    assert set(result.report["digests"]["selectors"]) == {"autoselect", "autoselect:spread"}
    assert "diversity 0.5" in result.report["methods"]["autoselect:spread"]


def test_several_diversities_give_rows_of_their_own(settings, selector_folder, tmp_path):
    """With 0 the paper's top-K; one more row is that of a selector saved with the other value."""
    folder = tmp_path / "selector"
    saved = Selector.from_pretrained(selector_folder)
    saved.diversity = 0.7
    saved.save_pretrained(folder)
    chosen = {"selector": str(folder), "diversity": "0,0.4,own", "methods": "none"}
    result = evaluate(dataclasses.replace(settings, **chosen, max_images=2))
    values = {"autoselect": 0.0, f"{SPREAD}-0.4": 0.4, f"{SPREAD}-own": 0.7}
    assert {row["method"] for row in result.report["rows"]} == values.keys()
    assert result.report["selector_diversity"] == 0.7
    for name, value in values.items():
        alone = Selector.from_pretrained(selector_folder)
        alone.diversity = value
        own = result.selectors[name]
        tokens = torch.randn(2, 144, 192, generator=torch.Generator().manual_seed(0))
        assert torch.equal(own.select(tokens, 9)[1], alone.select(tokens, 9)[1])
    assert "hard top-K" in result.report["methods"]["autoselect"]
    assert "diversity 0.4" in result.report["methods"][f"{SPREAD}-0.4"]


SPREAD = "autoselect:diversity"


@pytest.mark.parametrize(
    ("text", "words"),
    [("0,much", "numbers of 0..1"), ("0,1.5", "lie in 0..1"), ("0.4,0.40", "a value twice")],
)
def test_unclear_diversities_are_refused(settings, text, words):
    with pytest.raises(ConfigError, match=words):
        evaluate(dataclasses.replace(settings, diversity=text))


@pytest.mark.parametrize(
    ("selector", "words"), [("a,,b", "empty entry"), ("a,x=b,x=c", "autoselect:x twice")]
)
def test_unclear_selectors_are_refused(selector, words):
    with pytest.raises(ConfigError, match=words):
        selector_folders(selector)


def test_the_folder_of_a_selector_may_hold_an_equals_sign():
    found = selector_folders("runs/lr=1/selector, small=runs/lr=2/selector, ./lr=3")
    assert list(found.values()) == ["runs/lr=1/selector", "runs/lr=2/selector", "./lr=3"]
    assert list(found) == ["autoselect", "autoselect:small", "autoselect:./lr=3"]


def test_no_row_of_a_selector_takes_the_name_of_another(settings):
    own = settings.selector
    with pytest.raises(ConfigError, match="names autoselect:diversity-0.4, as diversity=0,0.4"):
        load_selectors(settings.model, f"{own},diversity-0.4={own}", "cpu", "0,0.4")


def test_a_selector_of_another_width_is_refused(settings, tmp_path):
    Selector(Scorer(64, ScorerConfig()), {}).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ConfigError, match="tokens of 64 channels.* have 192"):
        evaluate(dataclasses.replace(settings, selector=str(tmp_path / "narrow")))


def test_missing_shards_are_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match="nothing-\\*.tar"):
        evaluate(dataclasses.replace(settings, shards=str(tmp_path / "nothing-*.tar")))


JPEG = to_jpeg(Image.new("RGB", (96, 96)))
TURNS = [{"from": "human", "value": "<image>\nq ?"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": TURNS[:1]}, "1 questions, 0 answers"),
        ({"tasks": ["a", "b"]}, "tasks of sample 'bad' has 2 entries for 1 rounds"),
        ({"answers": [[]]}, "answers of sample 'bad' are empty .* or, .*--reference model"),
        ({"answers": ["yes"]}, "answers of sample 'bad' must be a list of accepted answers for"),
        ({"answers": [[{"answer": "yes"}]]}, "answers of sample 'bad' must be a list of accepted"),
        ({"answers": [[None]]}, "answers of sample 'bad' must be a list of accepted"),
        ({"answers": 5}, "answers of sample 'bad' must be a list with one entry per round, not 5"),
        ({"tasks": "c"}, "tasks of sample 'bad' must be a list with one entry per round, not 'c'"),
        ({"tasks": [None]}, "tasks of sample 'bad' must be the name of a task for every round"),
        ({"boxes": [[[1, 2, 3]]]}, r"boxes of sample 'bad' must be \(left, top, right, bottom\)"),
        ({"boxes": [[1, 2, 3, 4]]}, r"boxes of sample 'bad' must be \(left, top, right, bottom\)"),
        ({"boxes": [None]}, r"boxes of sample 'bad' must be \(left, top, right, bottom\)"),
        ({"boxes": [[["1", 2, 3, 4]]]}, r"boxes of sample 'bad' must be \(left, top, right"),
        ({"boxes": [[{"x": 1}]]}, r"boxes of sample 'bad' must be \(left, top, right, bottom\)"),
        ({"boxes": [[[0.1, 0.2, 0.3, 0.4]]]}, r"boxes of sample 'bad' must be .* in pixels"),
    ],
)
def test_records_that_cannot_be_scored_are_refused(tmp_path, change, message):
    with ShardWriter(str(tmp_path)) as writer:
        record = {"id": "bad", "image": "bad.jpg", "conversations": TURNS}
        writer.write("bad", {**record, **change}, [JPEG])
    with pytest.raises(ConfigError, match=message):
        EvaluationSet.open(str(tmp_path))


def test_spaces_around_the_name_of_a_task_make_no_other_task():
    turns = [*TURNS, TURNS[0], TURNS[1]]
    record = {"conversations": turns, "tasks": ["counting", " counting\n"]}
    assert set(parse_record(record, "one").tasks) == {"counting"}


def test_a_sample_without_image_is_refused(tmp_path):
    with ShardWriter(str(tmp_path)) as writer:
        turns = [{"from": "human", "value": "q ?"}, {"from": "gpt", "value": "a"}]
        writer.write("bad", {"id": "bad", "conversations": turns}, [])
    with pytest.raises(ConfigError, match="image of sample 'bad' is missing"):
        EvaluationSet.open(str(tmp_path))


def test_an_evaluation_refuses_shards_whose_index_skipped_a_sample(tmp_path):
    """A record names an image that is not stored: the others would be evaluated without it."""
    with ShardWriter(str(tmp_path)) as writer:
        for key in ("good", "bad"):
            writer.write(key, {"id": key, "image": f"{key}.jpg", "conversations": TURNS}, [JPEG])
    (shard,) = tmp_path.glob("*.tar")
    with tarfile.open(shard) as tar:
        kept = [(m, tar.extractfile(m).read()) for m in tar if m.name != "bad.jpg"]
    for stale in tmp_path.iterdir():
        stale.unlink()
    with tarfile.open(shard, "w") as tar:
        for member, data in kept:
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(
        ConfigError, match=r"1 samples cannot be used, the first: .*bad.* write the"
    ):
        EvaluationSet.open(str(tmp_path))


def test_an_image_that_cannot_be_decoded_is_named_before_anything_is_computed(tmp_path):
    with ShardWriter(str(tmp_path)) as writer:
        for key, data in (("good", JPEG), ("bad", JPEG[:-100])):
            record = {"id": key, "image": f"{key}.jpg", "conversations": TURNS}
            writer.write(key, record, [data])
    with pytest.raises(ConfigError, match="bad.*; replace the image"):
        EvaluationSet.open(str(tmp_path))


def test_a_baseline_that_the_data_does_not_allow_is_refused_by_name(settings, tmp_path):
    folder = tmp_path / "boxless"
    with ShardWriter(str(folder)) as writer:
        writer.write("one", {"id": "one", "image": "one.jpg", "conversations": TURNS}, [JPEG])
    with pytest.raises(ConfigError, match="methods=oracle: the samples have no boxes"):
        evaluate(dataclasses.replace(settings, shards=str(folder)))


def test_boxes_of_several_images_are_refused_before_anything_is_answered(settings, tmp_path):
    folder = tmp_path / "several"
    record = {"id": "one", "image": "one.jpg", "conversations": TURNS, "boxes": [[[0, 0, 9, 9]]]}
    with ShardWriter(str(folder)) as writer:
        writer.write("one", record, [JPEG])
        several = [{"from": "human", "value": "<image>\n<image>\nq ?"}, TURNS[1]]
        two = {"id": "two", "image": ["a.jpg", "b.jpg"], "conversations": several}
        writer.write("two", {**record, **two}, [JPEG, JPEG])
    with pytest.raises(ConfigError, match="methods=oracle: some samples have several images"):
        evaluate(dataclasses.replace(settings, shards=str(folder), methods="oracle"))


def test_prefill_bench_has_every_batch_and_the_cache_sizes(model_folder, selector_folder):
    found = bench.bench_prefill(
        model_folder, selector_folder, "8,16", [1, 2], bench.Rounds(2, 1), "cpu"
    )
    assert [run["batch_size"] for run in found["runs"]] == [1, 2]
    small, large = (run["kv_cache_bytes"] for run in found["runs"])
    assert large["8"] == 2 * small["8"]
    per_token = (small["16"] - small["8"]) / 8
    assert per_token == 2 * 4 * 192 * 4, "keys and values, 4 layers, 192 channels, float32"
    with pytest.raises(ConfigError, match="batches"):
        bench.bench_prefill(model_folder, selector_folder, "8", [0], bench.Rounds(2, 1), "cpu")


def test_every_setting_is_a_flag():
    root = argparse.ArgumentParser()
    commands.add_eval_command(root.add_subparsers())
    given = "eval --model m --selector s --shards p --budgets 8,11% --out o --max-images 3"
    arguments = root.parse_args([*given.split(), "--no-tracking"])
    assert commands.settings_of(arguments) == EvalSettings(
        model="m",
        selector="s",
        shards="p",
        budgets="8,11%",
        out="o",
        max_images=3,
        tracking=False,
    )


def test_a_selector_of_other_weights_is_evaluated_with_a_warning(settings, tmp_path, caplog):
    folder = tmp_path / "foreign"
    training = {"model_digest": "0" * 64, "model_name": "sibling"}
    Selector(Scorer(192, ScorerConfig()), training).save_pretrained(folder)
    foreign = dataclasses.replace(settings, selector=str(folder), methods="none", max_images=2)
    result = evaluate(foreign)
    assert sum("other weights" in text for text in result.report["warnings"]) == 1
    assert "trained on other weights (model_digest 000000000000 of sibling)" in caplog.text
    for name in ("report.md", "report.html"):
        assert "trained on other weights" in (Path(settings.out) / name).read_text()


def test_a_selector_of_these_weights_gives_no_warning(model_folder, tmp_path, caplog):
    vlm, _ = load_pair(model_folder, _selector(tmp_path / "unknown", {}), "cpu")
    load_pair(model_folder, _selector(tmp_path / "known", {"model_digest": vlm.digest}), "cpu")
    assert "other weights" not in caplog.text


def _selector(folder, training):
    Selector(Scorer(192, ScorerConfig()), training).save_pretrained(folder)
    return str(folder)


def test_another_revision_of_the_model_does_not_reuse_answers(settings, monkeypatch):
    first = prepare(settings)
    monkeypatch.setattr("autoselect.vlm.backbone.weights_digest", lambda path: "another commit")
    second = prepare(settings)
    assert second.digests["model"] == "another commit"
    assert first.store.fingerprint != second.store.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        *("rows_per_batch", "images_per_part", "max_new_tokens", "random_seeds"),
        *("latency_batch", "latency_repeats"),
    ],
)
def test_sizes_below_one_are_refused_by_name(settings, name):
    with pytest.raises(ConfigError, match=f"{name}=0 is below 1; choose 1 or more"):
        dataclasses.replace(settings, **{name: 0})


@pytest.mark.parametrize(
    ("batches", "message"),
    [("1,x", "batches='1,x' must be whole numbers"), ("0,2", "sizes of at least 1"), ("", "whole")],
)
def test_batches_that_are_not_sizes_are_refused(batches, message):
    with pytest.raises(ConfigError, match=message):
        commands.parse_batches(batches)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"repeats": 0}, "repeats=0 is below 1"), ({"warmup": -1}, "warmup=-1 is below 0")],
)
def test_rounds_that_measure_nothing_are_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        bench.Rounds(**more)


def test_the_bench_prints_its_protocol_and_the_speedup_with_vision(model_folder, selector_folder):
    found = bench.bench_prefill(
        model_folder, selector_folder, "8", [1, 2], bench.Rounds(2, 1), "cpu"
    )
    lines = bench.bench_lines(found)
    assert lines[0].split()[-3:] == ["speedup", "with", "vision"]
    row = found["runs"][0]["pruned"][0]
    assert lines[2].split()[-1] == f"{row['speedup_with_vision']:.2f}"
    assert "Batch 1, 2 interleaved rounds after" in "\n".join(lines)
    assert "Batch 2, 2 interleaved rounds after" in "\n".join(lines)


@pytest.mark.parametrize("command", ["eval", "analyse", "bench"])
def test_help_shows_defaults_and_names_of_methods(command, capsys):
    words = {"bench": ["bench", "prefill"]}.get(command, [command])
    with pytest.raises(SystemExit):
        cli.parser(command).parse_args([*words, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    shown = {
        "eval": ["visionzip", "questions answered together (default 32)", "(default 16)"],
        "analyse": ["(default 256)", "log to MLflow (default yes)"],
        "bench": ["(default 1,8,32)", "(default 5.5%,11%,22%,33%)", "100 on a GPU, 20 on a CPU"],
    }
    for part in shown[command]:
        assert part in text


def test_answers_of_other_code_are_not_reused(settings, monkeypatch):
    """The report names the commit and the versions that its answers were made with."""
    first = prepare(settings).store.fingerprint
    assert prepare(settings).store.fingerprint == first
    known = run.code_version()
    assert set(known) == {"torch", "transformers", "autoselect"}
    for name in known:
        with monkeypatch.context() as patched:
            patched.setattr(run, "code_version", lambda name=name: {**known, name: "other"})
            assert prepare(settings).store.fingerprint != first
