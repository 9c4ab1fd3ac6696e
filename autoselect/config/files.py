"""Reading of settings from YAML files and dotted flags (`--gate.token_budget 16`).

Given values replace the defaults of `autoselect.config`; unknown keys are refused.
"""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from autoselect.config import ConfigError, require

Config = TypeVar("Config")
MERGE = "tag:yaml.org,2002:merge"
QUOTES = ("'", '"')
SETTINGS_FILE = "config.yaml"
"""What a training writes into its run folder."""
RESOLVED = {"train", "deepspeed"}
"""Groups of that file."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that has a key twice: the first value would be lost."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen and key.tag != MERGE:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} appears twice in one group; keep one of them",
                    problem_mark=key.start_mark,
                )
            seen.add(name)
        return node


@dataclasses.dataclass(frozen=True, repr=False)
class _Flag:
    """The value of a flag: what it is in YAML, and as it was written, for settings that are text.

    YAML would make a number of the experiment `007`, and end the folder `a #2` at the space.
    """

    value: Any
    text: str

    def __repr__(self) -> str:
        return repr(self.value)

    def as_type(self, hint: Any) -> Any:
        plain = hint is str and not self.text.startswith(QUOTES)
        return self.text if plain and self.text.strip() else self.value


def from_dict(cls: type[Config], values: dict[str, Any], prefix: str = "") -> Config:
    """Build a configuration dataclass from nested mappings.

    Raises:
        ConfigError: a key is unknown (the closest known one is named), or a value has a wrong type.
    """
    require(
        isinstance(values, dict),
        f"{prefix.rstrip('.') or 'configuration'}={values!r} must be a group of settings; "
        f"give its members, such as --{prefix}NAME VALUE",
    )
    hints = typing.get_type_hints(cls)
    known = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown configuration key {prefix}{key}={value!r}; {hint}")
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}", known[key])
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str, description: str) -> Any:
    """Check the value of a setting against its type hint; an integer becomes a float if needed."""
    if isinstance(value, _Flag):
        value = value.as_type(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, f"{name}.")
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        listed = ", ".join(map(str, choices))
        require(value in choices, f"{name}={value!r} must be one of {listed}: {description}")
        return value
    if get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(h for h in get_args(hint) if h is not types.NoneType)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{name}={value!r} must be a number: {description}") from None
    matches = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    quotable = hint is str and not isinstance(value, dict | list | None)
    fix = "; write it in quotes" if quotable else ""
    require(matches, f"{name}={value!r} must be of type {hint.__name__}: {description}{fix}")
    return value


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with nested `changes` written over it; neither argument is modified."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(typing.cast(dict[str, Any], old), value) if both else value
    return merged


def parse_flags(flags: list[str]) -> dict[str, Any]:
    """Return flags such as `["--gate.token_budget", "16", "--seed=3"]` as nested mappings.

    Values are read as YAML, unless they are for a setting that is text and are without quotes; what
    is not YAML, such as the pattern `*.tar`, stays a text. Values are for `from_dict` only.

    Raises:
        ConfigError: a flag has no value, or one flag gives a group and another one its member.
    """
    nested: dict[str, Any] = {}
    remaining = list(flags)
    while remaining:
        flag = remaining.pop(0)
        require(flag.startswith("--"), f"unexpected argument {flag!r}; write --NAME VALUE")
        name, equals, text = flag[2:].partition("=")
        if not equals:
            given = remaining and not remaining[0].startswith("--")
            require(bool(given), f"flag --{name} has no value; write --{name} VALUE")
            text = remaining.pop(0)
        _place(nested, name, _value(text))
    return nested


def _place(nested: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    place = nested
    for number, parent in enumerate(parents, 1):
        place = place.setdefault(parent, {})
        group = ".".join(parents[:number])
        require(
            isinstance(place, dict),
            f"flag --{name}: {group}={place!r} is one value by an earlier flag; "
            f"give either --{group} or its members",
        )
    place[last] = value


def _value(text: str) -> Any:
    try:
        value = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        return text
    return value if isinstance(value, dict) else _Flag(value, text)


def load_config(cls: type[Config], path: str | None, flags: list[str]) -> Config:
    """Read a configuration: flags win over the YAML file, and both over the defaults.

    Raises:
        ConfigError: the file is missing or is not a YAML mapping, a key is unknown, or a value is
            out of range.
    """
    values = {} if path is None else read_yaml(path)
    require(
        values.keys() != RESOLVED,
        f"config={path} is what a training wrote into its run folder; copy the group `train` of it "
        "into a file of its own, as the whole file",
    )
    return from_dict(cls, merge(values, parse_flags(flags)))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; an empty file holds an empty one.

    Raises:
        ConfigError: the file is missing, unreadable, or not a YAML mapping.
    """
    file = Path(path)
    require(file.is_file(), f"config={path} does not exist; give a YAML file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={path} cannot be read: {error}; give a YAML file") from error
    try:
        values = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no such date
        raise ConfigError(f"config={path} is not valid YAML: {error}; correct it") from error
    require(isinstance(values, dict | None), f"config={path} must be a mapping of keys to values")
    return values or {}


def check_replaceable(output: Path) -> None:
    """Check that a training which writes its settings into `output` replaces no file of the user.

    Raises:
        ConfigError: there is a file of that name with other content.
    """
    path = output / SETTINGS_FILE
    if path.is_file() and read_yaml(path).keys() != RESOLVED:
        raise ConfigError(
            f"output={output}: the training writes its settings into {path.name} there, and "
            "would replace a file that it did not write; give that file another name or place"
        )


def to_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"gate": {"token_budget": 16}}` as `{"gate.token_budget": 16}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
