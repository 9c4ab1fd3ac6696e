import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from autoselect import train
from autoselect.ablation import cells
from autoselect.ablation.collect import collect
from autoselect.ablation.variants import load_plan
from autoselect.cli import main as cli
from autoselect.config import ScorerConfig, TrainConfig
from autoselect.config.files import load_config
from autoselect.evaluation.analyses.command import ANALYSED
from autoselect.evaluation.earlier import check_earlier
from autoselect.evaluation.settings import EvalSettings
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from tests.evaluation.conftest import model_folder, shards

__all__ = ["model_folder", "shards"]

YAML = """
name: small
steps: 4
seeds: [0, 1, 2]
images: 40
budgets: 4,8
baselines: divprune
leak_images: 10
leak_budget: 4
tracking: false
base: {gate.token_budget: 8, gate.min_token_budget: 4, tune_images: 0}
variants:
  - name: reference
    asks: What does the base setting reach?
  - name: channel
    asks: Is noise per channel enough?
    train: {gate.noise: channel}
  - name: again
    asks: What does another batch size of the evaluation change?
    eval: {rows_per_batch: 32}
    trained_as: reference
"""
REPORTS = {"eval": "report.json", "analyse": "leak.json"}
ENVIRONMENT = {"processor": "test", "threads": 1, "torch": "2", "git_commit": "abc"}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "ablation.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture
def plan(config):
    return load_plan(config)


def accepted(command):
    """Check that the real programs accept these flags and would replace what lies in the folder."""
    if command[0] == "autoselect":
        options = cli.parser(command[1]).parse_args(command[1:])
        names = ANALYSED if "analyse" in command else [field.name for field in fields(EvalSettings)]
        settings = {name: value for name, value in vars(options).items() if name in names}
        check_earlier(Path(options.out) / REPORTS[options.command], settings)
        return settings
    script = next(i for i, word in enumerate(command) if word.endswith("train.py"))
    options, settings = train.parser().parse_known_args(command[script + 1 :])
    assert Path(options.deepspeed).is_file()
    load_config(TrainConfig, options.config, settings)
    return settings


class Programs:
    """A fake of the programs that cells start: writes the files they write, with known scores."""

    def __init__(self, images=40):
        self.images = images
        self.calls = []
        self.fail_at = None
        self.tunes, self.weights, self.diversity = True, 0, 0.0
        self.model_digest, self.data_digest, self.training_data = "weights", "d", "t"

    def __call__(self, command, again, folder=None, log=None):
        flags = dict(zip(command[::1], command[1::1], strict=False))
        kind = "train" if command[0] == "deepspeed" else command[2 if "analyse" in command else 1]
        out = Path(flags["--output" if kind == "train" else "--out"])
        self.settings = accepted(command)
        self.calls.append((kind, *out.parts[-3:-1]))
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        out.mkdir(parents=True, exist_ok=True)
        getattr(self, kind)(out, flags)

    def train(self, out, flags):
        training = {"polarisation": 0.97, "model_digest": self.model_digest}
        training["data_digest"] = self.training_data
        if self.tunes:
            training["tuning"] = {"best": []}
        torch.manual_seed(self.weights)
        scorer = Scorer(8, ScorerConfig(hidden_size=4, num_layers=0, num_heads=1))
        Selector(scorer, training, self.diversity).save_pretrained(out / "selector")

    def leak(self, out, flags):
        accuracies = {"full": 0.9, "blind": 0.3, "without_denoiser": 0.4, "with_denoiser": 0.5}
        excess = {"without_denoiser": 0.1, "with_denoiser": 0.2}
        found = {"budget": 4, "images": 10, **accuracies, "excess": excess}
        found["settings"] = self.settings
        (out / "leak.json").write_text(json.dumps(found))

    def eval(self, out, flags):
        methods = ["autoselect"] if flags["--methods"] == "none" else ["autoselect", "divprune"]
        budgets = flags["--budgets"].split(",")
        columns = ["full@0#0", "blind@0#0", *(f"{m}@{b}#0" for m in methods for b in budgets)]
        skill = {"full": 1.0, "blind": 0.2, "autoselect": 0.9, "divprune": 0.6}
        if "--scoring" in flags:
            skill = {name: share / 2 for name, share in skill.items()}
        if "channel" in out.parts:
            skill["autoselect"] = 0.5
        seed = int(out.parts[-2].removeprefix("seed-")) if "seed-" in out.parts[-2] else 9
        rng = np.random.default_rng([seed, "channel" in out.parts, "again" in out.parts])
        lines = []
        for image in range(int(flags["--max-images"])):
            for turn, task in enumerate(("colour", "count")):
                right = {c: rng.random() < skill[c.split("@")[0]] for c in columns}
                lines.append(
                    {
                        "key": f"{image}",
                        "round": turn,
                        "task": task,
                        "question": "q ?",
                        "answers": ["a"],
                        "predictions": {c: "a" if yes else "b" for c, yes in right.items()},
                    }
                )
        (out / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
        report = {
            "model": "tiny",
            "num_tokens": 144,
            "questions": len(lines),
            "settings": self.settings,
            "training": {},
            "environment": ENVIRONMENT,
            "digests": {"model": self.model_digest, "data": self.data_digest, "selector": "s"},
        }
        (out / "report.json").write_text(json.dumps(report))


@pytest.fixture
def programs(monkeypatch):
    stand_in = Programs()
    monkeypatch.setattr(cells, "call", stand_in)
    return stand_in


@pytest.fixture
def run_all():
    """Run every cell and the baselines, and collect the results."""

    def run(plan, out):
        for number, (variant, seed) in enumerate(plan.cells()):
            cell = cells.run_cell(plan, out, variant, seed)
            if number == 0:
                cells.evaluate_baselines(plan, out, cell)
        return collect(plan, out)

    return run
