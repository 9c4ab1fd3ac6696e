"""Every setting is described once, and every `--help` shows that description."""

import argparse
import dataclasses
import typing

import pytest

from autoselect.ablation.variants import AblationPlan, Variant
from autoselect.cli import main as cli
from autoselect.config import TrainConfig
from autoselect.config.setting import described
from autoselect.evaluation.settings import EvalSettings
from autoselect.lmms.settings import PublicSettings
from autoselect.preflight.estimates import Assumptions
from autoselect.reference.recipe import ReferenceData, ReferenceTraining
from autoselect.reference.siglip_qwen2.recipe import MixedTraining
from autoselect.train import parser as train_parser

SETTINGS = [
    TrainConfig,
    EvalSettings,
    PublicSettings,
    AblationPlan,
    Variant,
    ReferenceData,
    ReferenceTraining,
    MixedTraining,
    Assumptions,
]
COMMANDS = {
    "eval": (["eval"], EvalSettings),
    "bench public": (["bench", "public"], PublicSettings),
    "reference shards": (["reference", "shards"], ReferenceData),
    "reference train": (["reference", "train"], ReferenceTraining),
    "reference train --recipe siglip-qwen2": (["reference", "train"], MixedTraining),
}


def words(text: str) -> str:
    """Return a text without its line breaks and indentation."""
    return " ".join(text.split())


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_every_field_has_a_help_text(settings):
    for name, _, field in described(settings):
        text = field.metadata.get("help", "")
        assert text and text == words(text) and not text.endswith("."), name


def test_the_help_of_the_training_describes_every_setting(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    shown = words(train_parser().format_help())
    names = [name for name, hint, _ in described(TrainConfig) if not dataclasses.is_dataclass(hint)]
    assert len(names) >= 38
    for name, hint, field in described(TrainConfig):
        assert words(field.metadata["help"]) in shown, name
        if name in names:
            assert f"--{name} " in shown
        if typing.get_origin(hint) is typing.Literal:
            assert f"{{{','.join(typing.get_args(hint))}}}" in shown
    assert "(default null)" not in shown and "--data.workers INT" in shown
    assert "processes per rank; 0 decodes in the training process (default 0)" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_describes_every_flag(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    command, settings = COMMANDS[name]
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    shown = words(capsys.readouterr().out)
    for field in dataclasses.fields(settings):
        assert f"--{field.name.replace('_', '-')}" in shown
        assert words(field.metadata["help"]) in shown, field.name
        if isinstance(field.default, bool):
            assert f"{field.metadata['help']} (default {'yes' if field.default else 'no'})" in shown


def flags_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the flags of a command and of all its sub-commands."""
    flags = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags += [flag for below in action.choices.values() for flag in flags_of(below)]
        else:
            flags.append(action)
    return flags


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_of_every_command_is_described(command):
    assert not [flag.dest for flag in flags_of(cli.parser(command)) if not flag.help]
