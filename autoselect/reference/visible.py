"""Rewrite training answers to match the visual tokens that are left after removal.

A model that is taught the true count from a part of the image learns to add what is probably
hidden. That is right if tokens are missing at random, and wrong under every selector that keeps the
objects: the model then counts objects that do not exist. Public VLMs do not learn this guess, so
the reference VLM must not either. Questions about presence and number are therefore answered from
the objects that keep at least one token. The answers follow from the patch labels and the tokens of
the question.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from autoselect.reference.corpus import IGNORED
from autoselect.reference.scenes import COLOURS, SHAPES
from autoselect.reference.vlm import GRID

Kind = tuple[str, str]


def segments(labels: np.ndarray) -> np.ndarray:
    """Return what covers each patch, [N]: 0 is background, objects and characters count from 1.

    Args:
        labels: patch labels of one image from `corpus.patch_labels`, [4, N].
    """
    middles = np.flatnonzero(labels[3] == 1)
    patches = np.arange(labels.shape[1])
    rows = patches[:, None] // GRID - middles // GRID
    columns = patches[:, None] % GRID - middles % GRID
    covered = (labels[0] > 0) | (labels[2] > 0)
    return np.where(covered, 1 + np.argmin(rows**2 + columns**2, axis=1), 0)


def objects_left(labels: np.ndarray, kept: np.ndarray) -> list[Kind]:
    """Return shape and colour of every object that keeps at least one patch.

    Args:
        labels: patch labels of one image from `corpus.patch_labels`, [4, N].
        kept: positions of the kept visual tokens, [K].
    """
    shape, colour, _, centre = labels
    inside = (shape > 0) & (shape != IGNORED)
    middles = np.flatnonzero(inside & (centre == 1))
    left = kept[inside[kept]]
    seen: set[int] = set()
    for patch in left:
        same = middles[(shape[middles] == shape[patch]) & (colour[middles] == colour[patch])]
        rows, columns = same // GRID - patch // GRID, same % GRID - patch % GRID
        seen.add(int(same[np.argmin(rows**2 + columns**2)]))
    shapes, colours = SHAPES, list(COLOURS)
    return [(shapes[shape[m] - 1], colours[colour[m] - 1]) for m in sorted(seen)]


class VisibleAnswers:
    """Rewrite the answers of packed question slots.

    Args:
        tokenizer: tokenizer of the reference VLM; every word and every answer is a single token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.ids = {word: i for i, word in enumerate(self.words)}

    def answer(self, question: Sequence[str], left: list[Kind]) -> str | None:
        if question[0] == "how":
            asked = set(question) & (set(COLOURS) | {f"{shape}s" for shape in SHAPES})
            wanted = [k for k in left if not asked or {f"{k[0]}s", k[1]} & asked]
            return str(len(wanted))
        if question[:2] == ["is", "there"]:
            colour, shape = question[3:5]
            return "yes" if (shape, colour) in left else "no"
        return None

    def rewrite(
        self, tokens: np.ndarray, starts: np.ndarray, labels: np.ndarray, kept: np.ndarray
    ) -> np.ndarray:
        """Return a copy of `tokens` with answers that match the kept visual tokens.

        If no token is kept, the answers are not changed, and the model learns to guess.

        Args:
            tokens: question slots, [B, Q, S].
            starts: start of each answer in its slot, [B, Q]; S or more marks an empty slot.
            labels: patch labels, [B, 4, N].
            kept: positions of the kept visual tokens, [B, K].
        """
        if kept.shape[1] == 0:
            return tokens
        tokens = tokens.copy()
        for row, slots in enumerate(tokens):
            left = objects_left(labels[row], kept[row])
            for slot, start in zip(slots, starts[row], strict=True):
                if start < len(slot):
                    answer = self.answer([self.words[i] for i in slot[:start]], left)
                    if answer is not None:
                        slot[start] = self.ids[answer]
        return tokens
