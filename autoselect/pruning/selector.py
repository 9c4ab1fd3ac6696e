"""The Selector that users load: Scorer and hard top-K, nothing else.

It ranks visual tokens, so the budget is an argument of `select` and not part of the checkpoint. A
selector is a folder, or a repository on the hub, with `selector.safetensors`, `config.json` and a
model card, without pickles.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoselect import __version__
from autoselect.config import ConfigError, GateSite, ScorerConfig, require
from autoselect.config.files import from_dict
from autoselect.files.atomic import write_text
from autoselect.files.tensors import write_tensors
from autoselect.method.scorer import Scorer
from autoselect.ops.checks import check_float, check_mask, values_are_checkable
from autoselect.ops.diverse_top_k import diverse_top_k
from autoselect.ops.hard_top_k import hard_top_k, select_tokens, tokens_at
from autoselect.pruning.budget import budget_to_tokens
from autoselect.pruning.card import CARD_FILE, card_text, scores_of, without_folders
from autoselect.pruning.diversity import (
    Diversity,
    Relevance,
    check_relevance,
    checked_diversity,
    on_scale,
    stored_diversity,
    weight_at,
)
from autoselect.pruning.folder import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    check_own,
    read_config,
    read_weights,
    weights_digest,
)
from autoselect.pruning.hub import local_folder, upload
from autoselect.vlm.host import send
from autoselect.vlm.sites import SITES

LARGEST = 1 << 17
"""Most channels or layers of a Scorer; larger numbers are damage."""


class Selector(nn.Module):
    """Scores visual tokens and keeps the best K of every image.

    Args:
        scorer: the trained Scorer.
        metadata: facts about the training: model, budget, data digest.
        diversity: 0 keeps the best scores, as the paper does; up to 1 the kept tokens must also
            differ from each other, see `autoselect.ops.diverse_top_k`. One weight, or a
            `DiversityCurve`, a weight for each share of tokens that stays, as `autoselect tune`
            finds it. May be changed at any time.
        relevance: scale of the scores beside the diversity, see `autoselect.pruning.diversity`.
        site: which tokens it scores, see `autoselect.vlm.sites`: what the projector returns, what
            it takes, or the patch embeddings before the vision encoder.
    """

    def __init__(
        self,
        scorer: Scorer,
        metadata: dict[str, Any] | None = None,
        diversity: Diversity = 0.0,
        relevance: Relevance = "rank",
        site: GateSite = "after_projector",
    ) -> None:
        super().__init__()
        check_relevance(relevance)
        require(site in SITES, f"site={site!r} must be one of {', '.join(SITES)}")
        self.site: GateSite = site
        self.scorer = scorer
        self.metadata = dict(metadata or {})
        self.diversity = diversity
        self.relevance: Relevance = relevance

    @property
    def diversity(self) -> Diversity:
        """Weight of being different from what is kept already, 0..1, or one for each share."""
        return self._diversity

    @diversity.setter
    def diversity(self, value: Diversity) -> None:
        self._diversity = checked_diversity(value)

    @property
    def width(self) -> int:
        """Return D, the channels of the visual tokens that it was trained on."""
        return self.scorer.width

    def check_width(self, width: int, of: str, name: str = "selector") -> None:
        """Raise ConfigError if the tokens of a model have another width.

        Args:
            width: channels of the tokens that are to be scored.
            of: whose tokens they are, for the error.
            name: the setting that names this selector, for the error.
        """
        if self.width != width:
            raise ConfigError(
                f"{name} scores tokens of {self.width} channels, and those of {of} have "
                f"{width}; use the selector that was trained for this model (this one: "
                f"{self.metadata.get('model', 'unknown')})"
            )

    @property
    def config(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": __version__,
            "width": self.width,
            "scorer": asdict(self.scorer.config),
            "diversity": stored_diversity(self.diversity),
            "relevance": self.relevance,
            "site": self.site,
            "training": self.metadata,
        }

    def like(self, diversity: Diversity = 0.0, relevance: Relevance = "rank") -> "Selector":
        """Return a selector of the same Scorer, metadata and site with another choice."""
        return Selector(self.scorer, self.metadata, diversity, relevance, self.site)

    @torch.no_grad()
    def score(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the importance logits [B, N] of visual tokens.

        Args:
            tokens: projector outputs, [B, N, D].
            mask: true at real tokens, [B, N].

        Raises:
            ConfigError: another shape or dtype, or another width than that of the training.
        """
        if tokens.ndim != 3:
            raise ConfigError(
                f"tokens of shape {list(tokens.shape)} are not [B, N, D]; give one image per row"
            )
        if tokens.shape[-1] != self.width:
            self.check_width(tokens.shape[-1], f"shape {list(tokens.shape)}")
        check_float("tokens", tokens, "[batch, tokens, channels]", 3)
        if mask is not None:
            check_mask(mask, tokens.shape[:2], tokens.device)
        return self.scorer.infer(tokens, mask)

    def select(
        self, tokens: Tensor, budget: int | float, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the best tokens of every image [B, K, D] in image order, and their positions.

        Args:
            tokens: projector outputs, [B, N, D].
            budget: K tokens (an integer), or the share of the N tokens that stays (a float).
            mask: true at real tokens, [B, N].

        Raises:
            ConfigError: the budget is below one token or above N.
        """
        count = budget_to_tokens(budget, tokens.shape[1])
        return self.take(self.score(tokens, mask), tokens, count, mask)

    def take(
        self, scores: Tensor, tokens: Tensor, k: int, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the `k` tokens of each row that stay, [B, K, D], and their positions [B, K]."""
        if self.diversity == 0:
            return select_tokens(tokens, broken_first(scores, tokens), k, mask)
        positions = self.choose(scores, tokens, k, mask)
        return tokens_at(tokens, positions), positions

    def choose(
        self,
        scores: Tensor,
        tokens: Tensor,
        k: int | Sequence[int],
        mask: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the positions of the tokens of each row that stay, int64, [B, K], ascending.

        Args:
            scores: importance logits, [B, N].
            tokens: projector outputs, [B, N, D].
            k: how many stay, 1..N, of every row or of each [B]; the largest is K. A row with fewer
                ends with -1.
            mask: true at real tokens, [B, N]; a row with fewer than its `k` ends with -1.
            lengths: real tokens of each row, [B]; None to read them from the mask if the diversity
                depends on them, which waits for the device.
        """
        scores = broken_first(scores, tokens)
        rows_k: int | Tensor
        if isinstance(k, int):
            counts, rows_k, width = [k] * len(scores), k, None
        else:
            counts, width = list(k), max(k)
            rows_k = send([np.asarray(counts)], scores.device)[0]
        if self.diversity == 0:
            return hard_top_k(scores.float(), rows_k, mask, width)
        relevance = on_scale(self.relevance, scores, mask)
        groups = self._weights(scores, counts, mask, lengths)
        if len(groups) == 1:
            return diverse_top_k(relevance, tokens, rows_k, next(iter(groups)), mask, width)
        kept = scores.new_empty(len(scores), max(counts), dtype=torch.int64)
        for weight, numbers in groups.items():
            (rows,) = send([np.asarray(numbers)], scores.device)
            own = None if mask is None else mask[rows]
            some = rows_k[rows] if isinstance(rows_k, Tensor) else rows_k
            kept[rows] = diverse_top_k(relevance[rows], tokens[rows], some, weight, own, width)
        return kept

    def _weights(
        self,
        scores: Tensor,
        counts: Sequence[int],
        mask: Tensor | None,
        lengths: Sequence[int] | None,
    ) -> dict[float, list[int]]:
        """Return the rows [B] by the weight of diversity that their share of kept tokens asks for.

        `counts` tokens of the rows stay; `lengths` is as in `choose`.
        """
        batch, size = scores.shape
        if isinstance(self.diversity, float):  # without waiting for the device to read the mask
            return {self.diversity: list(range(batch))}
        if lengths is None:
            lengths = [size] * batch if mask is None else mask.sum(dim=-1).tolist()
        rows: dict[float, list[int]] = {}
        for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            rows.setdefault(weight_at(self.diversity, count, length), []).append(row)
        return rows

    def record_scores(self, report: Mapping[str, Any]) -> None:
        """Copy the scores of an evaluation's `report.json` to the metadata, for the model card.

        Raises:
            ConfigError: the evaluation was of other weights, or chose tokens in another way than
                the selector does.
        """
        measured = report.get("selector_weights")
        if measured is not None and measured != weights_digest(self.state_dict()):
            raise ConfigError(
                "report is of another selector (its `selector_weights` are others); give the "
                "report.json of this one, whose row is `autoselect`"
            )
        self.metadata["scores"] = scores_of(report, self.diversity)

    def save_pretrained(self, folder: str | Path, name: str | None = None) -> None:
        """Write `selector.safetensors`, `config.json` and the model card `README.md`.

        The card calls the selector `name`, by default the folder's name.

        Raises:
            ConfigError: the metadata is not JSON, or the folder has the `config.json` of a model.
            OSError: the folder cannot be written, or the disk is full.
        """
        texts = self._texts(Path(folder), name)  # first, so that what fails changes no file
        weights = {key: tensor.float() for key, tensor in self.state_dict().items()}
        write_tensors(Path(folder) / WEIGHTS_FILE, weights)
        _write_texts(texts)

    def save_config(self, folder: str | Path, name: str | None = None) -> None:
        """Write `config.json` and the card beside weights that are there already."""
        _write_texts(self._texts(Path(folder), name))

    def _texts(self, folder: Path, name: str | None) -> dict[Path, str]:
        """Return the text files of the selector's folder; see `save_pretrained`.

        Raises:
            ConfigError: the metadata is not JSON, or the folder is not one for a selector.
        """
        check_own(folder)
        try:
            stored = {**self.config, "weights": weights_digest(self.state_dict())}
            config = json.dumps(stored, indent=2)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"metadata={self.metadata!r} cannot be written: {error}; keep text, numbers, lists "
                "and dictionaries in it"
            ) from error
        card = card_text(self.config, name or folder.absolute().name)
        return {folder / CONFIG_FILE: f"{config}\n", folder / CARD_FILE: card}

    def push_to_hub(
        self,
        repository: str,
        private: bool = False,
        message: str = "Upload selector",
        licence: str | None = None,
    ) -> str:
        """Upload the selector with its card to `org/name` on the hub; return the commit's address.

        What is uploaded calls a model of this machine by its name, without its path.

        Args:
            repository: `org/name`; it is created if it is missing.
            private: whether a repository that is created is private; else everybody can read it.
            message: message of the commit.
            licence: licence of these weights on the card, such as `mit`; None for the one in the
                metadata (`licence`), by default `apache-2.0`. That of the model may ask for more.

        Raises:
            ConfigError: the name has another form, the repository holds a model, or the hub
                refuses or cannot be reached.
        """
        files = (CONFIG_FILE, WEIGHTS_FILE)
        shown = self.like(self.diversity, self.relevance)
        shown.metadata |= {"licence": licence} if licence else {}
        if model := self.metadata.get("model"):
            shown.metadata["model"] = without_folders(model)
        return upload(
            repository,
            lambda folder: shown.save_pretrained(folder, repository),
            files,
            private,
            message,
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        revision: str | None = None,
    ) -> "Selector":
        """Load a selector that `save_pretrained` or `push_to_hub` wrote.

        Args:
            folder: a folder; else `org/name` on the hub, or a logged model of the tracking store,
                `models:/ID` or `runs:/RUN/selector`.
            device: device that the selector is moved to.
            revision: branch, tag or commit on the hub.

        Raises:
            ConfigError: files are missing, damaged or of another format; weights do not fit or are
                not finite; the hub or the store lacks the selector or cannot be reached.
        """
        folder = local_folder(folder, revision, [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE])
        config = read_config(folder)
        width = config["width"]
        try:
            settings = from_dict(ScorerConfig, config["scorer"], "scorer.")
            for size in (width, settings.hidden_size, settings.num_layers):
                require(size <= LARGEST, f"no size of a Scorer is above {LARGEST}, such as {size}")
            require(width >= 1, f"width={width} is below 1")
            with torch.device("meta"):  # allocates nothing, whatever the sizes are
                scorer = Scorer(width, settings)
                selector = cls(
                    scorer,
                    config.get("training"),
                    0.0 if config.get("diversity") is None else config["diversity"],
                    config.get("relevance") or "minmax",
                    config.get("site") or "after_projector",
                )
        except ConfigError as error:
            raise ConfigError(
                f"selector={folder}/{CONFIG_FILE}: {error}; copy both files from one selector"
            ) from error
        shapes = {name: tensor.shape for name, tensor in selector.state_dict().items()}
        weights = read_weights(folder, shapes, config.get("weights"))
        selector.load_state_dict(weights, assign=True)
        return selector.to(device).eval()


def broken_first(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return scores [B, N] that put tokens which are not finite first in rows whose scores are NaN.

    The answer then shows what is wrong with an image, as it does without a selector; else the first
    tokens would stay, and it would look right. On a CPU the scores stay NaN, which is an error.
    """
    if values_are_checkable(scores):
        return scores
    sums = tokens.sum(dim=-1, dtype=scores.dtype)
    return torch.where(scores.isnan(), sums.nan_to_num(torch.inf, torch.inf, torch.inf), scores)


def _write_texts(texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        write_text(path, text)
