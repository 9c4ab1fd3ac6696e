"""The error that users see for bad input."""

SHOWN = 3
"""Names that a message lists; it counts the others."""


class ConfigError(ValueError):
    """A value given by the user breaks a rule; the message names field, value, rule and fix."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def first_names(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
