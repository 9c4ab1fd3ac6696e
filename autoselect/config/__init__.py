"""Configuration: settings and their checks, YAML and flags, and the DeepSpeed JSON."""

from autoselect.config.errors import ConfigError, require
from autoselect.config.gate import GateConfig, GateKind, GateSite
from autoselect.config.settings import (
    DataConfig,
    DenoiserAttention,
    DenoiserConfig,
    OptimizerConfig,
    ScorerConfig,
    TrainConfig,
    ValidationConfig,
)

__all__ = [
    "ConfigError",
    "DataConfig",
    "DenoiserAttention",
    "DenoiserConfig",
    "GateConfig",
    "GateKind",
    "GateSite",
    "OptimizerConfig",
    "ScorerConfig",
    "TrainConfig",
    "ValidationConfig",
    "require",
]
