"""The Selector that users load: Scorer and hard top-K, nothing else.

It ranks visual tokens, so the budget is an argument of `select`, not of the checkpoint. A selector
is a folder with `selector.safetensors` and `config.json`: no pickles.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoselect import __version__
from autoselect.config import ConfigError, ScorerConfig, from_dict
from autoselect.ops.hard_top_k import select_tokens
from autoselect.scorer import Scorer

WEIGHTS_FILE, CONFIG_FILE = "selector.safetensors", "config.json"
FORMAT = "autoselect-selector"


class Selector(nn.Module):
    """Scores visual tokens and keeps the best K of every image.

    Args:
        scorer: the trained Scorer.
        metadata: what is known of the training: model, budget, data digest.
    """

    def __init__(self, scorer: Scorer, metadata: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.scorer = scorer
        self.metadata = dict(metadata or {})

    @property
    def width(self) -> int:
        """D, channels of the visual tokens it was trained on."""
        return self.scorer.width

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return {
            "format": FORMAT,
            "version": __version__,
            "width": self.width,
            "scorer": asdict(self.scorer.config),
            "training": self.metadata,
        }

    @torch.no_grad()
    def score(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Importance logits [B, N] of visual tokens [B, N, D].

        Args:
            tokens: what the language model would see, [B, N, D].
            mask: true at real tokens, [B, N].

        Raises:
            ConfigError: the width is not the one it was trained on.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.width:
            raise ConfigError(
                f"tokens of shape {list(tokens.shape)} do not fit a selector of width "
                f"{self.width}; use it with the model that it was trained on: "
                f"{self.metadata.get('model', 'unknown')}"
            )
        return self.scorer(tokens, mask)

    def select(
        self, tokens: Tensor, budget: int | float, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best tokens of every image, in image order.

        Args:
            tokens: [B, N, D].
            budget: K tokens (an integer), or the share of the N tokens that stays (a float).
            mask: true at real tokens, [B, N].

        Returns:
            kept tokens [B, K, D] and their original positions [B, K].

        Raises:
            ConfigError: a budget below one token or above N.
        """
        count = budget_to_tokens(budget, tokens.shape[1])
        return select_tokens(tokens, self.score(tokens, mask), count, mask)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `selector.safetensors` and `config.json` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {n: t.detach().float().cpu().contiguous() for n, t in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> "Selector":
        """Load what `save_pretrained` wrote.

        Raises:
            ConfigError: files are missing, damaged or belong to another format; weights do not fit.
        """
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise ConfigError(
                    f"selector={folder} has no {name}; give a folder written by save_pretrained "
                    "or by training (RUN/selector)"
                )
        try:
            config = json.loads((folder / CONFIG_FILE).read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"selector={folder}/{CONFIG_FILE} is no JSON: {error}") from error
        if config.get("format") != FORMAT:
            raise ConfigError(
                f"selector={folder}: format={config.get('format')!r} must be {FORMAT!r}"
            )
        scorer = Scorer(int(config["width"]), from_dict(ScorerConfig, config["scorer"], "scorer."))
        selector = cls(scorer, config.get("training"))
        try:
            selector.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (SafetensorError, RuntimeError) as error:
            raise ConfigError(
                f"selector={folder}/{WEIGHTS_FILE} does not fit its config.json or is damaged: "
                f"{error}"
            ) from error
        return selector.to(device).eval()


def budget_to_tokens(budget: int | float, num_tokens: int) -> int:
    """Number of tokens that a budget means.

    Args:
        budget: K (an integer), or the share that stays, above 0 and at most 1 (a float).
        num_tokens: N.

    Raises:
        ConfigError: outside 1..N, or outside 0..1 for a share.
    """
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ConfigError(
                f"budget={budget} as a share must lie above 0 and at most at 1; "
                "use an integer for a number of tokens"
            )
        return max(1, round(budget * num_tokens))
    if budget < 1:
        raise ConfigError(f"budget={budget} is below 1; choose 1..{num_tokens}")
    if budget > num_tokens:
        raise ConfigError(
            f"budget={budget} exceeds the {num_tokens} visual tokens of this model; "
            f"choose 1..{num_tokens}"
        )
    return budget
