"""`autoselect serve` writes vLLM's command, and starts nothing that would serve images whole."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoselect import ConfigError, Selector
from autoselect.cli import main as cli
from autoselect.config import ScorerConfig, extras
from autoselect.method.scorer import Scorer
from autoselect.serving import command, plugin

SERVE = ["serve", "org/model", "--selector", "org/name", "--budget"]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Return the commands that would replace this process; `org/name` is a selector here."""
    found: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    make_selector("org/name")
    monkeypatch.setattr(command, "check_installation", lambda: None)
    monkeypatch.setattr(os, "execvp", lambda _program, words: found.append(words))
    return found


def make_selector(folder, site="after_projector"):
    scorer = Scorer(8, ScorerConfig(hidden_size=8, num_heads=2))
    Selector(scorer, site=site).save_pretrained(folder)


@pytest.mark.parametrize(("budget", "meaning"), [("64", 64), ("11%", 0.11), ("0.25", 0.25)])
def test_the_command_has_the_block_and_the_flags_of_vllm(started, budget, meaning):
    assert cli.main([*SERVE, budget, "--", "--port", "8000", "--enforce-eager"]) == 0
    (words,) = started
    assert words[:5] == [sys.executable, "-m", command.SERVER, "--model", "org/model"]
    block = json.loads(words[words.index("--hf-overrides") + 1])
    assert block == {"autoselect": {"selector": "org/name", "budget": meaning}}
    assert words[-3:] == ["--port", "8000", "--enforce-eager"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([*SERVE, "0"], "budget=0 is below 1"),
        ([*SERVE, "many"], "is not a number"),
        ([*SERVE, "64", "--diversity", "3"], "diversity"),
        ([*SERVE, "64", "--", "--hf-overrides", "{}"], "--hf-overrides is written by"),
        ([*SERVE, "64", "--", "--hf_overrides={}"], "--hf-overrides is written by"),
        ([*SERVE, "64", "--", "--hf-overrides.rope_theta", "1"], "--hf-overrides is written by"),
    ],
)
def test_a_wrong_command_starts_nothing(started, capsys, words, reason):
    assert cli.main(words) == 2
    assert reason in capsys.readouterr().err
    assert not started


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "selector=missing is not a folder here"),
        ("half", "selector=half has no selector.safetensors"),
        ("before", "a selector of site=before_encoder cannot prune models in vLLM"),
    ],
)
def test_a_wrong_selector_is_named_in_one_line_before_vllm_starts(started, capsys, name, reason):
    make_selector("half")
    Path("half/selector.safetensors").unlink()
    make_selector("before", "before_encoder")
    assert cli.main(["serve", "org/model", "--selector", name, "--budget", "8"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert reason in line
    assert not started


@pytest.mark.parametrize(
    ("architecture", "selector", "reason"),
    [
        ("PaliGemmaForConditionalGeneration", "org/name", "PaliGemma.* cannot be pruned in vLLM"),
        ("LlavaNextForConditionalGeneration", "before", "site=before_projector .* LlavaNext"),
        ("LlavaForConditionalGeneration", "before", None),
    ],
)
def test_a_model_that_cannot_be_pruned_is_named_before_vllm_starts(
    started, capsys, architecture, selector, reason
):
    make_selector("before", "before_projector")
    Path("model").mkdir()
    kinds = {"LlavaNext": "llava_next", "Llava": "llava", "PaliGemma": "paligemma"}
    kind = kinds[architecture.removesuffix("ForConditionalGeneration")]
    config = {"model_type": kind, "architectures": [architecture]}
    Path("model/config.json").write_text(json.dumps(config))
    code = cli.main(["serve", "model", "--selector", selector, "--budget", "8"])
    if reason is None:
        assert (code, len(started)) == (0, 1)
        return
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and re.search(reason, line) and not started


def test_a_missing_vllm_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vllm is not installed"):
        command.check_installation()


@pytest.mark.parametrize(
    ("allowed", "refused"), [("other", True), ("", True), ("autoselect", False)]
)
def test_a_switched_off_plugin_is_named(monkeypatch, allowed, refused):
    class Found:
        name = "autoselect"

    monkeypatch.setattr(extras, "find_spec", lambda name: object())
    monkeypatch.setattr(command, "installed_version", lambda: "0.32.0")
    monkeypatch.setattr(command, "entry_points", lambda group: [Found])
    monkeypatch.setenv("VLLM_PLUGINS", allowed)
    if refused:
        with pytest.raises(ConfigError, match="leaves autoselect out"):
            command.check_installation()
    else:
        command.check_installation()


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1", "0.33.0+cpu"])
def test_known_versions_are_accepted(version):
    plugin.check_version(version)


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0", "0.330.0"])
def test_other_versions_are_refused_by_name_unless_told_otherwise(version, monkeypatch):
    monkeypatch.delenv("AUTOSELECT_ANY_VLLM", raising=False)
    with pytest.raises(ConfigError, match=f"vllm=={version}"):
        plugin.check_version(version)
    monkeypatch.setenv("AUTOSELECT_ANY_VLLM", "1")
    plugin.check_version(version)


def test_importing_the_plugin_needs_no_vllm():
    """vLLM goes on without a plug-in whose import fails, so it must not."""
    code = "import sys; sys.modules['vllm'] = sys.modules['torch'] = None\n"
    code += "import autoselect.serving.plugin"
    subprocess.run([sys.executable, "-c", code], check=True)
