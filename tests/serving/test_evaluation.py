"""`autoselect eval --engine vllm` measures on the reference data what transformers does."""

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")

from autoselect.data.shards import ShardWriter  # noqa: E402
from autoselect.evaluation.answers import served  # noqa: E402
from autoselect.evaluation.latency.protocol import Rounds  # noqa: E402
from autoselect.evaluation.report.check import check_report  # noqa: E402
from autoselect.evaluation.run import evaluate  # noqa: E402
from autoselect.evaluation.settings import EvalSettings  # noqa: E402
from autoselect.reference.jpeg import to_jpeg  # noqa: E402
from tests.serving.cases import REFERENCE, picture, questions  # noqa: E402

IMAGES = 8
BUDGETS = (8, 16)


@pytest.fixture
def settings(selector, tmp_path, monkeypatch):
    monkeypatch.setattr(Rounds, "on", lambda own, device: (1, 0))
    monkeypatch.setattr(served, "MOST_CACHE", 64 << 20)
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for number in range(IMAGES):
            turns = [
                {"from": speaker, "value": text}
                for pair in questions(number)
                for speaker, text in zip(("human", "gpt"), pair, strict=True)
            ]
            turns[0]["value"] = f"<image>\n{turns[0]['value']}"
            record = {"id": str(number), "image": f"{number}.jpg", "conversations": turns}
            writer.write(f"{number:04d}", record, [to_jpeg(picture(number))])
    return EvalSettings(
        model=str(REFERENCE),
        selector=str(selector),
        shards=str(tmp_path / "shards" / "*.tar"),
        budgets=",".join(map(str, BUDGETS)),
        out=str(tmp_path / "transformers"),
        methods="none",
        images_per_part=5,
        device="cpu",
        tracking=False,
    )


def test_both_engines_give_the_same_answers_and_the_same_retention(settings, tmp_path):
    truth = evaluate(settings)
    by_engine = dataclasses.replace(settings, engine="vllm", out=str(tmp_path / "vllm"))
    found = evaluate(by_engine)
    check_report(found.report)
    assert found.replies.keys() == truth.replies.keys()
    for column, images in truth.replies.items():
        own = [reply for replies in found.replies[column] for reply in replies]
        for reply, true in zip(own, (reply for own in images for reply in own), strict=True):
            assert (reply.text, reply.tokens, reply.ended) == (true.text, true.tokens, true.ended)
    for row, true in zip(found.report["rows"], truth.report["rows"], strict=True):
        for key in ("method", "budget", "mean", "tasks", "retention", "retention_ci95"):
            assert row[key] == true[key]
    for name in ("full", "blind", "other_image"):
        assert found.report[name]["tasks"] == truth.report[name]["tasks"]
    full, pruned = (truth.replies[f"{name}#0"] for name in ("full@0", f"autoselect@{BUDGETS[0]}"))
    assert full != pruned, "pruning changes nothing, so nothing is compared"
    assert found.report["environment"]["vllm"].startswith("0.3")
    lines = (Path(by_engine.out) / "predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["predictions"].keys() == found.replies.keys()
