"""Documented commands: programs accept their flags, and batches split over the ranks."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from autoselect.cli import main as cli
from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.evaluation.settings import EvalSettings
from autoselect.train import DEFAULT_DEEPSPEED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALL = ROOT / "docs" / "install.md"
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
RECIPES = sorted((ROOT / "configs" / "train").glob("*.yaml"))
ABLATIONS = sorted((ROOT / "configs" / "ablation").glob("*.yaml"))
GPUS_OF_A_MACHINE = 8
ASSIGNMENT = re.compile(r"[A-Z_]+=")


class Command(NamedTuple):
    """A documented command: its file, the text of the whole page, and its words."""

    source: Path
    page: str
    words: list[str]

    def option(self, name: str) -> str | None:
        """Return the value of `--name VALUE`, `--name=VALUE` or `NAME=VALUE`."""
        for word, following in zip(self.words, [*self.words[1:], ""], strict=True):
            if word.startswith((f"{name}=", f"--{name}=")):
                return word.partition("=")[2]
            if word == f"--{name}":
                return following
        return None

    @property
    def program(self) -> str:
        return next((word for word in self.words if not ASSIGNMENT.match(word)), "")

    @property
    def deepspeed(self) -> str:
        return self.option("DEEPSPEED_CONFIG") or self.option("deepspeed") or DEFAULT_DEEPSPEED

    @property
    def recipe(self) -> Path | None:
        path = self.option("config")
        return ROOT / path if path and (ROOT / path).is_file() else None

    @property
    def ranks(self) -> int:
        if self.program == "autoselect":
            return int(self.option("gpus") or 1)
        if self.program == "sbatch":
            return int(self.option("nodes") or 1) * int(self.option("ntasks-per-node") or 1)
        if self.option("hostfile"):
            return sum(map(int, re.findall(r"^\S+ slots=(\d+)$", self.page, re.MULTILINE)))
        if self.option("num_gpus"):
            return int(self.option("num_gpus") or 1)
        model = load_config(TrainConfig, str(self.recipe), []).model if self.recipe else "MODEL"
        return 1 if model == "reference" else GPUS_OF_A_MACHINE


def is_about_training(words: list[str]) -> bool:
    starts = {"autoselect/train.py", "slurm/train.sh", "slurm/sweep.sh"} & set(words)
    return bool(starts or words[:2] in (["autoselect", "plan"], DOCTOR))


DOCTOR = ["autoselect", "doctor"]


def of_the_command_line(command: Command) -> list[str] | None:
    """Return the words after `autoselect`, also for `autoselect/eval.py` and `slurm/eval.sh`."""
    words = command.words
    if command.program == "autoselect":
        return words[words.index("autoselect") + 1 :]
    scripts = [i for i, word in enumerate(words) if re.fullmatch(r".*/eval\.(py|sh)", word)]
    return ["eval", *words[scripts[0] + 1 :]] if scripts else None


def documented() -> list[Command]:
    found = []
    for source in (*PAGES, *SCRIPTS, *RECIPES, *ABLATIONS):
        text = source.read_text()
        if source.suffix == ".md":
            blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
            indented = text.replace("\\\n", " ")
            lines += re.findall(r"^    (autoselect .*)$", indented, re.MULTILINE)
            lines += re.findall(r"`(autoselect plan [^`]*)`", text)
        else:
            joined = re.sub(r"\\\n# +", " ", text)
            starts = "deepspeed|sbatch|autoselect |[A-Z_]+="
            lines = re.findall(rf"^# +((?:{starts}).*)$", joined, re.MULTILINE)
        commands = [shlex.split(line, comments=True) for line in lines]
        found += [Command(source, text, words) for words in commands if "..." not in words]
    return found


EVERY = documented()
COMMANDS = [command for command in EVERY if is_about_training(command.words)]
FLAGS = [c for c in EVERY if of_the_command_line(c) and "--help" not in c.words]


def name_of(command: Command) -> str:
    return f"{command.source.name}: {' '.join(command.words)[:60]}"


def test_commands_of_every_kind_are_found() -> None:
    places = {(command.source.name, command.program) for command in COMMANDS}
    assert places >= {
        *(("README.md", "autoselect"), ("README.md", "deepspeed"), ("README.md", "sbatch")),
        *(("cluster.md", "autoselect"), ("cluster.md", "deepspeed"), ("cluster.md", "sbatch")),
        *(("reproduce.md", "autoselect"), ("reproduce.md", "deepspeed")),
        *(("train.sh", "sbatch"), ("sweep.sh", "sbatch"), ("llava-1.5-7b.yaml", "deepspeed")),
    }
    assert {command.ranks for command in COMMANDS} == {1, 2, 8, 16}


@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_the_batch_splits_over_the_ranks(command: Command) -> None:
    sizes = DeepSpeedConfig.load(ROOT / command.deepspeed).split(command.ranks)
    assert sizes.total == sizes.micro * sizes.accumulation * command.ranks


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.recipe], ids=name_of)
def test_a_recipe_is_planned_and_run_with_its_own_batch(command: Command) -> None:
    """Otherwise the documented hours and memory belong to another run."""
    assert command.recipe is not None
    own = re.search(r"^# deepspeed .* --deepspeed (\S+)", command.recipe.read_text(), re.MULTILINE)
    assert own is not None and command.deepspeed == own.group(1)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.option("config")], ids=name_of)
def test_a_run_has_the_output_that_doctor_checks(command: Command) -> None:
    """`doctor --config FILE` checks the output that the file names."""
    assert command.option("output") is None


OWN_RUNS = [c for c in COMMANDS if c.source.suffix == ".md" and c.program == "sbatch"]


@pytest.mark.parametrize("command", OWN_RUNS, ids=name_of)
def test_a_submitted_training_is_the_users_own(command: Command) -> None:
    """Without `--config` it would be the reference run."""
    assert command.option("config") and command.option("DEEPSPEED_CONFIG")


@pytest.mark.parametrize("command", [c for c in FLAGS if c.option("shards")], ids=name_of)
def test_shards_are_named_as_the_converters_write_them(command: Command) -> None:
    """Only the shards of the reference data have the split in their names."""
    shards = command.option("shards") or ""
    assert shards.startswith("runs/reference/") or not re.search(r"(train|test)-\*", shards)


def test_a_local_task_allows_answers_as_long_as_an_evaluation() -> None:
    words = ["bench", "local-task", "--shards", "shards/test", "--out", "task"]
    options, _ = cli.parser("bench").parse_known_args(words)
    assert options.max_new_tokens == EvalSettings.max_new_tokens


@pytest.mark.parametrize("name", ["PYTHON", "JOBS", "PORT"])
def test_the_documented_defaults_are_those_of_the_makefile(name: str) -> None:
    row = re.search(rf"^\| `{name}` \|.*\| `?([^`|]+?)`? \|$", INSTALL.read_text(), re.MULTILINE)
    own = re.search(rf"^{name} \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert row and own and row[1] == own[1]


@pytest.mark.parametrize("command", FLAGS, ids=name_of)
def test_a_documented_command_has_all_flags_and_no_unknown_one(command: Command) -> None:
    words = of_the_command_line(command)
    assert words is not None
    options, settings = cli.parser(words[0]).parse_known_args(words)
    if settings:
        assert options.takes_settings
        load_config(TrainConfig, None, settings)


def test_flags_of_every_kind_are_found() -> None:
    places = {(command.source.name, command.program) for command in FLAGS}
    assert places >= {
        *(("README.md", "autoselect"), ("reproduce.md", "autoselect")),
        *(("cluster.md", "sbatch"), ("eval.sh", "sbatch")),
        *(("evaluation.md", "autoselect"), ("captions.yaml", "autoselect")),
    }


def benchmark_commands() -> list[list[str]]:
    """Return the words from the script on of each `python benchmarks/NAME.py ...` of a page."""
    texts = [found for page in PAGES for found in re.findall("`([^`]+)`", page.read_text())]
    split = [shlex.split(text) for text in texts if "python benchmarks/" in text]
    return [words[words.index("python") + 1 :] for words in split]


class Parsed(Exception):
    """Ends a program behind the parsing of its flags."""


@pytest.mark.parametrize("words", benchmark_commands(), ids=" ".join)
def test_a_documented_benchmark_has_all_flags_and_no_unknown_one(words, monkeypatch) -> None:
    def parse(parser: argparse.ArgumentParser) -> None:
        assert not parser.parse_known_args(words[1:])[1]
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
