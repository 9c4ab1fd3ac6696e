"""The error that users see for bad input."""


class ConfigError(ValueError):
    """A value given by the user breaks a rule; the message names field, value, rule and fix."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
