"""Evaluation of selectors at earlier sites: what is answered, and what is timed."""

import json
from dataclasses import replace

import pytest
import torch

from autoselect import Selector, attach, detach
from autoselect.cli.main import main
from autoselect.config import ScorerConfig
from autoselect.evaluation.analyses.fidelity import (
    COVARIANCE,
    NOISE,
    REMOVAL,
    ZEROS,
    token_noises,
    treated,
)
from autoselect.evaluation.answers.answering import FULL, Column, Plan, answer_part
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.latency.bench import fixed_image
from autoselect.evaluation.latency.protocol import LatencyPlan, Rounds, latency_report
from autoselect.evaluation.methods.choice import context_of
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.report.latency import latency_notes
from autoselect.evaluation.report.latency_table import latency_table
from autoselect.evaluation.samples import EvaluationSet
from autoselect.method.scorer import Scorer
from autoselect.vlm import FrozenVLM

SITES = ("before_projector", "before_encoder")


@pytest.fixture(scope="module")
def vlm(model_folder):
    return FrozenVLM.from_pretrained(model_folder)


def selector_at(vlm, site):
    torch.manual_seed(1)
    scorer = Scorer(vlm.width_at(site), ScorerConfig(hidden_size=16, num_heads=2))
    return Selector(scorer, {"model": "test"}, site=site).eval()


@pytest.mark.parametrize("site", SITES)
def test_the_evaluator_answers_as_the_attached_model_does(vlm, shards, site):
    selector, asked = selector_at(vlm, site), AskedVLM(vlm)
    samples = list(EvaluationSet.open(shards))[:2]
    plan = Plan((selector_method(selector),), (6, 144), 144)
    answers = answer_part(asked, samples, plan)
    assert answers[str(Column("autoselect", 144))] == answers[str(Column(FULL, 0))]
    texts = [asked.prompt(1, sample.asked(0)) for sample in samples]
    inputs = vlm.inputs([sample.images for sample in samples], texts)
    attach(vlm.model, selector, 6)
    try:
        given = asked.generate(inputs, None, {"max_new_tokens": 16, "do_sample": False})
    finally:
        detach(vlm.model)
    assert given == [own[0].text for own in answers[str(Column("autoselect", 6))]]


def test_the_oracle_can_stand_before_the_encoder(vlm, shards):
    samples = list(EvaluationSet.open(shards))[:2]
    plan = Plan((METHODS["oracle"], METHODS["oracle_before_encoder"]), (144,), 144)
    answers = answer_part(AskedVLM(vlm), samples, plan)
    full = answers[str(Column(FULL, 0))]
    assert answers[str(Column("oracle_before_encoder", 144))] == full


def test_encoder_selection_and_prefill_are_timed_apart(vlm):
    plan = LatencyPlan((4, 16), 2, Rounds(2, 0))
    selectors = {name: selector_at(vlm, "before_encoder") for name in ("autoselect", "other")}
    report = latency_report(vlm, selectors, fixed_image(), "a ?", plan)
    assert report["site"] == "before_encoder"
    rows = [report["full"], *report["pruned"]]
    for row in rows:
        assert min(row[f"{part}_ms"] for part in ("vision", "prefill", "first_token")) > 0
    for row in report["pruned"]:
        prefix = "" if row["method"] == "autoselect" else "other "
        patches, kept = (
            report["timings"][f"{prefix}{name}"]["median_ms"]
            for name in ("patches", f"vision@{row['budget']}")
        )
        assert row["vision_ms"] == pytest.approx(patches + kept)
        assert row["selector_ms"] > 0
    table = latency_table({"latency": report, "num_tokens": 144})
    assert table.head[2:5] == ["vision ms", "selector ms", "prefill ms"] and len(table.rows) == 5
    assert "kept patches only" in latency_notes(report)[0]
    selectors = {"autoselect": selector_at(vlm, "before_projector")}
    other = latency_report(vlm, selectors, fixed_image(), "a ?", plan)
    assert (
        "vision_ms" not in other["full"]
        and "selector ms (in prefill)" in latency_table({"latency": other, "num_tokens": 144}).head
    )


@pytest.mark.parametrize("site", SITES)
def test_an_analysis_treats_tokens_at_the_site_of_the_gate(vlm, shards, site):
    """Noise at closed gates says nothing of the image there; open gates change nothing."""
    samples = list(EvaluationSet.open(shards))[:3]
    noises, asked = token_noises(vlm, samples, site), AskedVLM(vlm)
    encoded = asked.encode(samples, sites=(site,))
    context = context_of([image for own in encoded.images for image in own])
    assert len(noises.per_channel.mean) == context.at_site[site].shape[-1]
    everything = torch.arange(144).expand(len(samples), -1)
    for name, choices in treated(context, everything, noises, 0).items():
        for (choice,), tokens in zip(choices, context.tokens, strict=True):
            assert choice.positions.tolist() == list(range(144))
            torch.testing.assert_close(choice.features, tokens, rtol=1e-4, atol=1e-4, msg=name)
    nothing = everything[:, :0]
    other = replace(context, at_site={site: context.at_site[site].flip(0)})
    for name in (NOISE, COVARIANCE, ZEROS):
        one, two = (treated(own, nothing, noises, 0)[name] for own in (context, other))
        for (own,), (strange,) in zip(one, two, strict=True):
            assert torch.equal(own.features, strange.features)


def test_removal_before_the_encoder_is_the_tower_on_the_kept_patches_alone(vlm, shards):
    samples = list(EvaluationSet.open(shards))[:2]
    noises, asked = token_noises(vlm, samples, "before_encoder"), AskedVLM(vlm)
    encoded = asked.encode(samples, sites=("before_encoder",))
    context = context_of([image for own in encoded.images for image in own])
    positions = torch.tensor([[3, 40, 100], [7, 8, 143]])
    left = context.encoded(positions).tokens
    for (choice,), kept, tokens in zip(
        treated(context, positions, noises, 0)[REMOVAL], positions, left, strict=True
    ):
        assert torch.equal(choice.positions, kept)
        assert torch.equal(choice.features[kept], tokens)
    assert not torch.allclose(left, context.at(positions).tokens, atol=1e-3)


@pytest.fixture
def words(model_folder, shards, tmp_path):
    return [
        *("analyse", "fidelity", "--model", str(model_folder), "--shards", str(shards)),
        *("--budgets", "8", "--max-images", "4", "--max-new-tokens", "4", "--no-tracking"),
        *("--device", "cpu", "--out", str(tmp_path / "out")),
    ]


def test_an_analysis_without_a_selector_compares_random_scores_alone(words, tmp_path):
    assert main([*words, "--site", "before_projector"]) == 0
    found = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert found["site"] == "before_projector" and "learned" not in found
    assert (tmp_path / "out" / "fidelity.png").is_file()


def test_an_analysis_takes_the_site_of_its_selector_and_refuses_another(
    vlm, words, tmp_path, capsys, caplog
):
    selector_at(vlm, "before_encoder").save_pretrained(tmp_path / "selector")
    words += ["--selector", str(tmp_path / "selector")]
    assert main([*words, "--site", "after_projector"]) == 2
    said = capsys.readouterr().err + caplog.text
    assert "differs from the site of the selector, before_encoder" in said
    assert main(words) == 0
    found = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert found["site"] == "before_encoder" and found["learned"]["budgets"] == [8]
