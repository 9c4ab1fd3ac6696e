import dataclasses
import json
import math

import pytest
import torch

from autoselect.evaluation.answers.answering import (
    BLIND,
    FULL,
    OTHER,
    Column,
    Plan,
    answer_part,
)
from autoselect.evaluation.answers.fixed_choices import other_choices
from autoselect.evaluation.answers.parts import PartStore, answer_all, other_image
from autoselect.evaluation.asking.asked_vlm import Encoded, ImageTokens
from autoselect.evaluation.asking.choices import MODEL
from autoselect.evaluation.asking.replies import Reply, answered_by
from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.methods.registry import choose_methods, selector_method
from autoselect.evaluation.report.build import build_report
from autoselect.evaluation.report.check import check_report
from autoselect.evaluation.report.examples import lost_places
from autoselect.evaluation.report.files import write_predictions
from autoselect.evaluation.report.markdown import markdown
from autoselect.evaluation.report.warnings import seen_in_training
from tests.evaluation.fakes import GRID, FakeAsked, FakeSelector, make_samples


def latency(budgets):
    """Return what `latency_report` would give for the stand-in."""
    times = {"prefill_ms": 2.0, "selector_ms": 1.0, "speedup": 2.0}
    return {"full_prefill_ms": 4.0, "pruned": [{"budget": b, **times} for b in budgets]}


def plan(budgets=(2, 6), names="random,grid,norm,cls_attention,divprune,cdpruner,oracle"):
    methods = (selector_method(FakeSelector()), *choose_methods(names, 2))
    return Plan(methods, budgets, GRID * GRID, images_per_part=4, rows_per_batch=5)


def report_of(samples, answers, chosen):
    more = {
        "environment": environment(),
        "digests": {"model": "m", "selector": "s", "data": "d"},
    }
    timed = latency(chosen.budgets)
    return build_report(samples, answers, chosen, "fake", timed, more)


def test_each_image_is_encoded_once_and_tokens_are_really_removed():
    vlm, samples = FakeAsked(), make_samples(4)
    answer_part(vlm, samples, plan())
    assert vlm.encoded == 4
    assert set(vlm.lengths) == {0, 2, 6, GRID * GRID}


def test_answers_do_not_depend_on_batch_sizes():
    samples = make_samples(6)
    chosen = plan()
    whole = answer_part(FakeAsked(), samples, chosen)
    parts = [answer_part(FakeAsked(), samples[i : i + 2], chosen) for i in (0, 2, 4)]
    for column, answers in whole.items():
        assert answers == [texts for part in parts for texts in part[column]]


def test_keeping_every_token_gives_the_predictions_of_the_full_model():
    samples = make_samples(5)
    chosen = plan(budgets=(GRID * GRID,))
    answers = answer_part(FakeAsked(), samples, chosen)
    for column in chosen.columns():
        if column.method not in (FULL, BLIND):
            assert answers[str(column)] == answers[str(Column(FULL, 0))]
    for row in report_of(samples, answers, chosen)["rows"]:
        assert row["retention"] == 1.0
        assert row["retention_ci95"] == [1.0, 1.0]


def test_oracle_is_above_random_and_blind():
    samples = make_samples(40)
    chosen = plan(budgets=(2,))
    report = report_of(samples, answer_part(FakeAsked(), samples, chosen), chosen)
    check_report(report)
    by_name = {row["method"]: row for row in report["rows"]}
    assert report["full"]["mean"] == 1.0
    assert by_name["oracle"]["retention"] == by_name["autoselect"]["retention"] == 1.0
    assert by_name["random"]["retention"] < 0.5
    kept = {(row["method"], row["budget"]): row["retention"] for row in report["rows"]}
    for gap in report["intervals"]:
        here, there = kept["autoselect", gap["budget"]], kept[gap["against"], gap["budget"]]
        assert gap["difference"] == here - there
    gap = next(r for r in report["intervals"] if r["against"] == "random")
    assert gap["better"] and gap["ci95"][0] > 0
    text = markdown(report)
    assert "| upper bound | 36 |" in text and "**autoselect**" in text and "2.00" in text


class KilledError(Exception):
    pass


class DyingAsked(FakeAsked):
    """Dies at its second batch of images."""

    def encode(self, samples, attention=False, sites=()):
        if self.encoded >= 4:
            raise KilledError
        return super().encode(samples, attention)


def test_a_killed_run_goes_on_and_gives_the_same_answers(tmp_path):
    samples, chosen = make_samples(10), plan()
    expected = answer_all(FakeAsked(), samples, chosen, PartStore(tmp_path / "a", {}))
    store = PartStore(tmp_path / "b", {})
    with pytest.raises(KilledError):
        answer_all(DyingAsked(), samples, chosen, store)
    again = FakeAsked()
    assert answer_all(again, samples, chosen, store) == expected
    assert again.encoded == 6


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\x00" * 9])
def test_a_damaged_part_is_answered_again(damage, tmp_path):
    samples, chosen, store = make_samples(10), plan(), PartStore(tmp_path, {})
    expected = answer_all(FakeAsked(), samples, chosen, store)
    store.path(1).write_bytes(damage(store.path(1).read_bytes()))
    again = FakeAsked()
    assert answer_all(again, samples, chosen, store) == expected
    assert 0 < again.encoded < len(samples)


def test_one_and_two_ranks_give_the_same_answers(tmp_path):
    samples, chosen = make_samples(10), plan()
    alone = answer_all(FakeAsked(), samples, chosen, PartStore(tmp_path / "a", {}))
    store = PartStore(tmp_path / "b", {})
    second = FakeAsked()

    def other_rank_works():
        """Answer the second rank's parts while the first one waits."""
        answer_all(second, samples, chosen, store, rank=1, world_size=2, barrier=lambda: None)

    first = FakeAsked()
    both = answer_all(first, samples, chosen, store, 0, 2, barrier=other_rank_works)
    assert both == alone
    assert (first.encoded, second.encoded) == (6, 4)


def test_other_settings_do_not_reuse_stored_parts(tmp_path):
    first, second = PartStore(tmp_path, {"selector": "a"}), PartStore(tmp_path, {"selector": "b"})
    first.write(0, {"full@0#0": [[Reply("red", 2, True, 0.5)]]})
    assert first.merge(1) == {"full@0#0": [[Reply("red", 2, True, 0.5)]]}
    assert not second.path(0).exists()


def test_no_gradient_is_kept():
    samples = make_samples(2)
    answer_part(FakeAsked(), samples, plan())
    assert torch.is_grad_enabled()


def test_another_image_answers_with_what_that_image_shows():
    samples = make_samples(7)
    chosen = dataclasses.replace(plan(), others=True)
    others = [other_image(samples, i, one.image_digest) for i, one in enumerate(samples)]
    assert all(one is not other for one, other in zip(samples, others, strict=True))
    replies = answer_part(FakeAsked(), samples, chosen, others)[str(Column(OTHER, 0))]
    assert [own[0].text for own in replies] == [other.answers[0][0] for other in others]


def test_another_image_is_no_other_sample_of_the_same_image():
    samples = make_samples(6)
    shown = [dataclasses.replace(s, image_digest=d) for s, d in zip(samples, "aababa", strict=True)]
    assert [
        other_image(shown, i, one.image_digest).image_digest for i, one in enumerate(shown)
    ] == list("bbabab")
    assert other_image(samples, 1, samples[1].image_digest) is samples[4], (
        "half of the set further on"
    )


def test_images_of_other_sizes_are_repeated_or_thinned_out_evenly():
    def encoded(*counts):
        rows = [[ImageTokens("k", torch.arange(n)[:, None].float(), 1) for n in counts]]
        return Encoded(rows, None)

    (found,) = other_choices(encoded(4, 2), encoded(2))
    assert [choice.features.flatten().tolist() for choice in found] == [[0, 0, 1, 1], [0, 1]]
    ((thinned,),) = other_choices(encoded(2), encoded(6))
    assert thinned.features.flatten().tolist() == [0, 3]
    assert thinned.positions.tolist() == [0, 1]


def test_replies_say_whether_answers_end_and_how_likely_the_reference_is():
    """The stand-in ends every answer unless it sees no token at all."""
    samples, chosen = make_samples(4), plan(budgets=(2,), names="grid")
    replies = answer_part(FakeAsked(), samples, chosen)
    full = [reply for own in replies[str(Column(FULL, 0))] for reply in own]
    assert all(reply == Reply(reply.text, 2, True, 0.0) for reply in full)
    blind = [reply for own in replies[str(Column(BLIND, 0))] for reply in own]
    assert {(reply.tokens, reply.ended) for reply in blind} == {(16, False)}
    right = {reply.loss for reply in blind if reply.text == "red"}
    assert right <= {0.0, 1.0}
    report = report_of(samples, replies, chosen)
    check_report(report)
    assert report["full"]["answers"]["unended"] == 0 and report["full"]["answers"]["tokens"] == 2
    unseen = report["blind"]["answers"]
    assert unseen["unended"] == 1 and unseen["length_ratio"] == 8
    wrong = sum(sample.answers[0][0] != "red" for sample in samples) / len(samples)
    assert unseen["loss_difference"] == unseen["loss"] == pytest.approx(wrong)
    assert unseen["agreement"] == unseen["exact"] == pytest.approx(1 - wrong)


def test_with_the_model_as_reference_accuracy_is_agreement_with_it():
    """The data's answers are wrong on purpose; only the full model's own count."""
    samples = [dataclasses.replace(sample, answers=(("mauve",),) * 2) for sample in make_samples(6)]
    chosen = dataclasses.replace(plan(budgets=(2,)), reference=MODEL)
    replies = answer_part(FakeAsked(), samples, chosen)
    report = report_of(answered_by(samples, replies[str(Column(FULL, 0))]), replies, chosen)
    assert report["full"]["mean"] == 1.0 and report["full"]["answers"]["loss"] == 0.0
    for row in report["rows"]:
        assert row["mean"] == pytest.approx(row["answers"]["agreement"])


def test_a_full_model_that_cannot_be_compared_with_is_reported():
    samples, chosen = make_samples(10), plan(budgets=(2,), names="grid")
    replies = answer_part(FakeAsked(), samples, chosen)
    wrong = [dataclasses.replace(s, answers=(("mauve",),) * len(s.questions)) for s in samples]
    (warning,) = report_of(wrong, replies, chosen)["warnings"]
    assert warning.startswith("the full model scores 0.0 %, and 0.0 % without the picture")
    full = replies[str(Column(FULL, 0))]
    full[0], full[1] = ([dataclasses.replace(r, ended=False) for r in own] for own in full[:2])
    (warning,) = report_of(samples, replies, chosen)["warnings"]
    assert warning.startswith("20.0 % of the full model's answers reach the token limit")


def test_losses_that_are_not_finite_are_unknown_and_audit_no_sample(tmp_path):
    samples, chosen = make_samples(4), plan(budgets=(2,), names="grid")
    replies = answer_part(FakeAsked(), samples, chosen)
    for column in replies.values():
        column[0] = [dataclasses.replace(reply, loss=math.nan) for reply in column[0]]
        column[1] = [dataclasses.replace(reply, loss=math.inf) for reply in column[1]]
    assert sorted(image for _, (image, _) in lost_places(replies, chosen, 4)) == [2, 3]
    write_predictions(tmp_path / "predictions.jsonl", samples, replies, chosen)
    text = (tmp_path / "predictions.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    losses = [json.loads(line)["loss"]["full@0#0"] for line in text.splitlines()]
    assert losses[:4] == [None] * 4 and None not in losses[4:]


@pytest.mark.parametrize(("count", "said"), [(1, "1 image is"), (9, "9 images are"), (10, None)])
def test_intervals_of_few_images_are_reported(count, said):
    samples, chosen = make_samples(count), plan(budgets=(2,), names="grid")
    found = report_of(samples, answer_part(FakeAsked(), samples, chosen), chosen)["warnings"]
    assert [text.partition(" too few")[0] for text in found if "intervals" in text] == (
        [said] if said else []
    )


def test_a_selector_is_not_judged_on_what_it_was_trained_on():
    training = {"data_digest": "ab", "samples": 3}
    assert "was trained on these shards" in seen_in_training("autoselect", training, "ab:300")
    assert not seen_in_training("autoselect", training, "cd:300")
    assert not seen_in_training("autoselect", {**training, "samples": 0}, "ab:300")


def test_a_selector_that_leaves_answers_unended_is_reported():
    samples, chosen = make_samples(10), plan(budgets=(2, 6), names="grid")
    replies = answer_part(FakeAsked(), samples, chosen)
    assert report_of(samples, replies, chosen)["warnings"] == []
    column = replies[str(Column("autoselect", 2))]
    column[0] = [dataclasses.replace(reply, ended=False, tokens=16) for reply in column[0]]
    (warning,) = report_of(samples, replies, chosen)["warnings"]
    assert warning.startswith("pruning by autoselect changes the endings")
    assert "10.0 % with 2 tokens, but 0.0 % with all tokens" in warning
    text = markdown(report_of(samples, replies, chosen))
    assert "| **autoselect** | 2 |" in text and "| **10.0** |" in text
