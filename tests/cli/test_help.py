"""Help texts come at once, as no command imports torch before it runs, and name the defaults."""

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from autoselect.cli.main import COMMANDS, main, parser


@pytest.mark.parametrize("words", [*COMMANDS, "reference shards", "bench prefill", "bench public"])
def test_help_comes_without_the_import_of_torch(words):
    code = (
        "import sys\nfrom autoselect.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split(), "--help"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: autoselect" in done.stdout


def flags(command: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action, str]]:
    """Yield name, action and shown help of each flag of a command and of its sub-commands."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from flags(one)
        elif action.option_strings:
            shown = command._get_formatter()._expand_help(action)
            yield f"{command.prog} {action.option_strings[-1]}", action, shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_default_of_every_flag(name):
    choices = parser(name)._subparsers._group_actions[0].choices
    for flag, action, shown in flags(choices[name]):
        default = action.default
        if default is not False and default not in (None, "", [], argparse.SUPPRESS):
            assert "default" in shown, flag
        assert "default None" not in shown and "default: None" not in shown, flag
        assert "(default )" not in shown and "(default: )" not in shown, flag


@pytest.mark.parametrize("words", ["eval", "shards convert-llava", "bench prefill", "train"])
def test_help_says_what_the_command_does(words, capsys):
    with pytest.raises(SystemExit):
        main([*words.split(), "--help"])
    usage, said, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: autoselect {words}")
    assert said[0].isupper() and said.endswith(".")
