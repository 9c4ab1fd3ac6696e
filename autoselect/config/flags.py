"""Command-line flags: one per field of a settings dataclass, and checks of single numbers."""

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from autoselect.config import ConfigError
from autoselect.config.bounds import at_least
from autoselect.config.setting import described, help_of, scalar_type

Settings = TypeVar("Settings")


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter):
    """Ends the help of a flag with its default, unless it has none or the text speaks of it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        none = default is None or default is False or default in (argparse.SUPPRESS, "", [])
        shown = not none and action.option_strings and "default" not in text
        return f"{text} (default %(default)s)" if shown else text


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line and name the way out; its sub-commands get one too.

    Flags that it does not know are refused, unless a default `takes_settings` is true.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpWithDefaults, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and not getattr(found, "takes_settings", False):
            flag = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(flag, self._option_string_actions, 1, 0.7)
            hint = f" (did you mean {close[0]}?)" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def describe_commands(parser: argparse.ArgumentParser) -> None:
    """Make the summary of each sub-command its description, unless it has one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for summary in action._choices_actions:
                command, text = action.choices[summary.dest], summary.help or ""
                command.description = command.description or f"{text[:1].upper()}{text[1:]}."
                describe_commands(command)


def add_setting_flags(
    parser: argparse.ArgumentParser, settings: type, names: Sequence[str] | None = None
) -> None:
    """Add one flag per field; a truth value becomes `--name` and `--no-name`.

    Args:
        parser: the parser that gets the flags.
        settings: a dataclass; fields without a default become required flags.
        names: the wanted fields; all by default.
    """
    for name, hint, field in described(settings):
        if names is not None and name not in names:
            continue
        flag = f"--{name.replace('_', '-')}"
        missing = field.default is dataclasses.MISSING
        options: dict[str, Any] = {"default": None if missing else field.default}
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": scalar_type(hint), "required": missing}
        action = parser.add_argument(flag, **options)
        action.help = flag_help(settings, name, options["default"])


def read_settings(settings: type[Settings], arguments: argparse.Namespace) -> Settings:
    """Build a settings dataclass from the values of its flags."""
    names = [name for name, _, _ in described(settings)]
    return settings(**{name: getattr(arguments, name) for name in names})


def flag_help(settings: type, name: str, default: Any = None) -> str:
    """Return the help text of a field for argparse, with the default value unless it is None."""
    shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
    ending = "" if shown is None else f" (default {shown})"
    return f"{help_of(settings, name)}{ending}".replace("%", "%%")


def settings_help(settings: type) -> str:
    """Return a description of all dotted settings (`--gate.token_budget INT`) for an epilog."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    group = parser.add_argument_group("settings")
    for name, hint, field in described(settings):
        text = field.metadata["help"].replace("%", "%%")  # argparse formats it with %
        if dataclasses.is_dataclass(hint):
            group = parser.add_argument_group(f"{name} ({text})")
            continue
        default = field.default
        if default is None or isinstance(default, bool):
            default = {True: "true", False: "false", None: "null"}[default]
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        value = f"{{{','.join(choices)}}}" if choices else scalar_type(hint).__name__.upper()
        shown = str(default).replace("%", "%%")
        group.add_argument(f"--{name}", metavar=value, help=f"{text} (default {shown})")
    return parser.format_help()


def check_counts(**counts: int | None) -> None:
    """Raise ConfigError if a named number is below 1; None means that it was not given."""
    for name, value in counts.items():
        if value is not None:
            at_least(1, name, value)


def check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ConfigError(f"port={port} is not a TCP port; choose 1024..65535")
