"""One description per setting: the help text is stored in the dataclass field of the setting.

Every `--help`, and the errors about a setting, read it from there.
"""

import copy
import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin


def setting(default: Any, help: str) -> Any:
    """Return a dataclass field with a default value and its help text."""
    described = {"help": help}
    if isinstance(default, list | dict):
        factory = lambda: copy.copy(default)  # noqa: E731
        return dataclasses.field(default_factory=factory, metadata=described)
    return dataclasses.field(default=default, metadata=described)


def required(help: str) -> Any:
    """Return a dataclass field without a default value, with its help text."""
    return dataclasses.field(metadata={"help": help})


def help_of(settings: type, name: str) -> str:
    """Return the help text of one field of a settings class."""
    return str({f.name: f.metadata["help"] for f in dataclasses.fields(settings)}[name])


def described(
    settings: type, prefix: str = ""
) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Yield dotted name, type and field of every setting; a group comes before its members."""
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        yield name, hint, field
        if dataclasses.is_dataclass(hint):
            yield from described(typing.cast(type, hint), f"{name}.")


def scalar_type(hint: Any) -> Any:
    """Return the type of a value that may also be None: `int` for `int | None`."""
    members = [member for member in get_args(hint) if member is not type(None)]
    return members[0] if members and get_origin(hint) is not Literal else hint
