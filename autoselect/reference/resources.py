"""The names `reference` for the model and the data that need no download."""

from pathlib import Path

from autoselect.config import ConfigError
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_shards

MODEL_FOLDER = Path(__file__).parent / "model"
SHARDS_FOLDER = Path("runs/reference/shards")
REFERENCE = "reference"
REFERENCE_ANSWER_TOKENS = 4
"""The longest answer of the reference data, its end included."""
REFERENCE_ROWS = 160
"""Questions answered together; the reference VLM is small enough for many."""


def resolve_model(name: str) -> str:
    """The folder of the reference VLM for `reference`; any other name is returned as it is.

    Raises:
        ConfigError: the weights are not in the installation.
    """
    if name != REFERENCE:
        return name
    if not (MODEL_FOLDER / "model.safetensors").is_file():
        raise ConfigError(
            f"model=reference: {MODEL_FOLDER} has no weights; install from a full checkout, or "
            "make them with `autoselect reference train`"
        )
    return str(MODEL_FOLDER)


def resolve_shards(name: str, split: str = "train", folder: Path = SHARDS_FOLDER) -> str:
    """A glob of the reference shards for `reference`, rendered first if they are missing."""
    if name != REFERENCE:
        return name
    render_shards(folder, ReferenceData())
    return str(folder / f"{split}-*.tar")
