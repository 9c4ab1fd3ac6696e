"""Learning rate, temperature and token budget as pure functions of the step."""

import math

import numpy as np

from autoselect.config import GateConfig, OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the rate of update `step`, from 0: linear warm-up, then a cosine to a floor."""
    warmup = math.ceil(config.warmup_fraction * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.floor_fraction + (1 - config.floor_fraction) * cosine)


def temperature(config: GateConfig, step: int, steps: int) -> float:
    """Return the temperature: it falls over `anneal_fraction` of the steps, then stays.

    The geometric decay is ours: early, so that gates polarise while the learning rate can still
    correct them. The cosine is that of the paper's follow-up (DiffPrune, arXiv 2605.28051).
    """
    length = config.anneal_fraction * steps
    progress = 1.0 if length <= 0 else min(1.0, step / length)
    start, end = config.temperature_start, config.temperature_end
    if config.temperature_decay == "cosine":
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
    return float(start * (end / start) ** progress)


def token_budget(config: GateConfig, seed: int, step: int) -> int:
    """Return K: fixed, or drawn log-uniformly from the range, the same on every rank."""
    lowest = config.lowest_budget
    if lowest is None:
        return config.token_budget
    draw = np.random.default_rng([seed, 0x6B, step]).random()
    low, high = math.log(lowest), math.log(config.token_budget + 1)
    return min(config.token_budget, int(math.exp(low + draw * (high - low))))
