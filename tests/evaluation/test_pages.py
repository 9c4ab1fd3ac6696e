"""What a person sees: the HTML report and the MLflow pages, rendered by headless Chromium."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from autoselect.config import ScorerConfig
from autoselect.evaluation.answers.answering import Plan, answer_part
from autoselect.evaluation.asking.replies import texts_of
from autoselect.evaluation.figures.curves import retention_curves
from autoselect.evaluation.figures.overlays import patch_overlays
from autoselect.evaluation.methods.registry import choose_methods, selector_method
from autoselect.evaluation.report.build import build_report
from autoselect.evaluation.report.examples import choose_places, overlay_rows
from autoselect.evaluation.report.html import html_report
from autoselect.evaluation.report.markdown import markdown
from autoselect.evaluation.report.tracked_evaluation import CURVE, TrackedEvaluation
from autoselect.evaluation.settings import EvalSettings
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.tracking.dashboard import server_command, server_environment
from autoselect.tracking.models_and_data import Data
from tests.evaluation.fakes import GRID, FakeAsked, FakeSelector, FakeVLM, make_samples

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--window-size=2400,1200",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def dom(address, profile, milliseconds=1000):
    """Return the page after its scripts ran, as HTML."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom"]
    command += [f"--virtual-time-budget={milliseconds}", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a report of the stand-in model with its figures, as `evaluate` writes them."""
    out = tmp_path_factory.mktemp("out")
    samples = make_samples(24)
    methods = (selector_method(FakeSelector()), *choose_methods("random,divprune", 1))
    plan = Plan(methods, (1, 4), GRID * GRID)
    replies = answer_part(FakeAsked(), samples, plan)
    answers = {column: texts_of(own) for column, own in replies.items()}
    pruned = [
        {"budget": b, "prefill_ms": 1.5, "selector_ms": 0.5, "speedup": 2.0} for b in plan.budgets
    ]
    more = {"environment": {"git_commit": "abc"}, "digests": {"data": "d", "selector": "s"}}
    latency = {"full_prefill_ms": 3.0, "pruned": pruned}
    report = build_report(samples, replies, plan, "<stand-in>", latency, more)
    places = choose_places(samples, answers, plan)
    rows = overlay_rows(FakeVLM(), FakeSelector(), samples, samples, answers, plan, places)
    figures = {"retention": out / "retention.png", "overlays": out / "overlays.png"}
    retention_curves(report).savefig(figures["retention"])
    patch_overlays(rows, (GRID, GRID)).savefig(figures["overlays"])
    (out / "report.html").write_text(html_report(report, figures))
    (out / "report.md").write_text(markdown(report))
    for name in ("report.json", "predictions.jsonl"):
        (out / name).write_text("{}\n")
    return out, report, figures, places


def test_shown_samples_are_one_per_task_from_different_images(finished):
    places = finished[3]
    assert len({image for image, _ in places}) == len(places) == 2
    assert {turn for _, turn in places} == {0, 1}


@needs_chromium
def test_the_html_report_shows_table_and_figures(finished, tmp_path):
    page = dom((finished[0] / "report.html").as_uri(), tmp_path)
    assert page.count("<tr") >= 3 + 2 * 4 + 2 * 4
    assert "lower bound (blind)" in page and "Retention per task" in page
    assert page.count("<img alt=") == 2
    assert "&lt;stand-in&gt;" in page and "<stand-in>" not in page
    assert "95 % interval" in page and "2.00" in page


@needs_chromium
@pytest.mark.slow
def test_the_dashboard_shows_the_evaluation(finished, tmp_path, monkeypatch, empty_store):
    out, report, figures, _ = finished
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = EvalSettings("m", "runs/mine/selector", "shards", "1,4", str(out))
    tags = {"model": report["model"], "data": "24 images"}
    data = Data("test images", "0123456789abcdef", "shards", "24 images")
    with TrackedEvaluation(settings, {}, tags, data) as record:
        record.log(report, figures, {"autoselect": Selector(Scorer(5, ScorerConfig()))}, {})
    run_id = record.run_id
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    server = subprocess.Popen(
        [*server_command(uri), "--workers", "1", "--host", "127.0.0.1", "--port", str(port)],
        env=server_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        address = f"http://127.0.0.1:{port}/#/experiments/1/runs/{run_id}"
        page = dom(address, tmp_path / "profile", 20000)
        charts = dom(f"{address}/model-metrics", tmp_path / "profile", 20000)
        table = dom(
            f"http://127.0.0.1:{port}/#/experiments/1/runs?viewStateShareKey=selectors",
            tmp_path / "profile",
            20000,
        )
    finally:
        _stop(server)
    for text in ("full_accuracy", f"{CURVE}/autoselect", "speedup_at_4_tokens", "K=1 keeps"):
        assert text in page, f"{text} is not on the page of the run"
    groups = re.findall(r">([a-zA-Z_ ]+)</div><div[^>]*>\(\d+\)<", charts)
    assert len(groups) >= 3 and groups[0] == CURVE, groups
    for text in ("Best selector", "K=4 runs/mine", "retention_at_1_tokens", "speedup_at_1_tokens"):
        assert text in table, f"{text} is not in the list of selectors"
    assert "autoselect, 4 tokens" in page, "the nested runs are linked"


def _stop(server):
    """End the server and its workers; a worker waits for the browser's open connections."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(address):
    for _ in range(480):
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)
