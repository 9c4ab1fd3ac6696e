"""Projectors of stock models: which of them map each token of an image alone, and their inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from autoselect.config import ConfigError
from autoselect.vlm.patches import POOLING, RESAMPLED, SHUFFLED

SITE = "site=before_projector"
CONVOLUTIONS = "its projector is convolutional"
NEWLINES = "newline tokens are put between its projected tokens"
VIEWS = "the tiles of a picture and its whole view are projected in two calls"
REFUSED = {
    "aria": RESAMPLED,
    "aya_vision": SHUFFLED,
    "cohere2_vision": SHUFFLED,
    "deepseek_ocr2": VIEWS,
    "deepseek_vl_hybrid": "its projector joins the outputs of two vision towers",
    "got_ocr2": CONVOLUTIONS,
    "idefics2": RESAMPLED,
    "idefics3": SHUFFLED,
    "lfm2_vl": SHUFFLED,
    "lfm3_vl": SHUFFLED,
    "llava_next": NEWLINES,
    "llava_next_video": NEWLINES,
    "llava_onevision": NEWLINES,
    "minimax_m3_vl": SHUFFLED,
    "mistral3": SHUFFLED,
    "mistral_large4": SHUFFLED,
    "molmo2": "its projector pools neighbouring patches by attention",
    "nemotron_h_omni": "its projector takes the tokens of all images in one sequence",
    "pp_chart2table": CONVOLUTIONS,
    "smolvlm": SHUFFLED,
    "step3p7": VIEWS,
    "unlimited_ocr": NEWLINES,
}
"""Why the tokens of a model type cannot be removed before its projector."""


def check_projector(kind: str, pooling: int = 1) -> None:
    """Raise ConfigError if the projector of a model type does not map each token alone.

    Args:
        kind: model type.
        pooling: side of the square of tokens that the projector averages (Perception LM).
    """
    reason = POOLING if pooling > 1 else REFUSED.get(kind)
    if reason is not None:
        raise ConfigError(
            f"{SITE} cannot be used with model_type={kind}: {reason}; use site=after_projector, "
            "which every family has"
        )


def input_width(projector: nn.Module | None) -> int | None:
    """Return the input channels of a projector's first linear layer, or None."""
    modules = [] if projector is None else projector.modules()
    return next((m.in_features for m in modules if isinstance(m, nn.Linear)), None)


@contextmanager
def projector_inputs(projector: nn.Module | None) -> Iterator[list[tuple[Tensor, ...]]]:
    """Note the inputs of each call that the own thread makes of a projector inside the block."""
    seen: list[tuple[Tensor, ...]] = []
    if projector is None:
        yield seen
        return
    thread = get_ident()

    def note(_projector: Any, given: tuple[Tensor, ...]) -> None:
        if get_ident() == thread:
            seen.append(given)

    with projector.register_forward_pre_hook(note):
        yield seen
