"""Configuration: frozen dataclasses, their checks, and the one error users see for bad input."""


class ConfigError(ValueError):
    """A value given by the user breaks a rule; the message names field, value, rule and fix."""
