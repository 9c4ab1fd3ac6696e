"""Resolve the name `reference`, which stands for the model and the data of this package."""

from pathlib import Path

from autoselect.config import ConfigError
from autoselect.reference.recipe import ReferenceData

MODEL_FOLDER = Path(__file__).parent / "model"
SHARDS_FOLDER = Path("runs/reference/shards")
REFERENCE = "reference"
REFERENCE_ANSWER_TOKENS = 4
"""Length of the longest answer in the reference data, tokens with the end token."""
REFERENCE_ROWS = 160
"""Questions answered together. The reference VLM is small enough for many."""


def resolve_model(name: str) -> str:
    """Return the folder of the reference VLM for `reference`, and any other name unchanged.

    Raises:
        ConfigError: the installation does not hold the weights.
    """
    if name != REFERENCE:
        return name
    if not (MODEL_FOLDER / "model.safetensors").is_file():
        raise ConfigError(
            f"model=reference: {MODEL_FOLDER} has no weights; install from a full checkout, or "
            "train them with `autoselect reference train`"
        )
    return str(MODEL_FOLDER)


def resolve_shards(name: str, split: str = "train") -> str:
    """Return a glob of the reference shards for `reference`, and render missing shards.

    Any other name is returned unchanged.
    """
    if name != REFERENCE:
        return name
    from autoselect.reference.shards import render_shards  # imports torch and transformers

    render_shards(SHARDS_FOLDER, ReferenceData())
    return str(SHARDS_FOLDER / f"{split}-*.tar")
