"""Ask a model about one picture with all and with fewer visual tokens, and draw what stayed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autoselect.cli.photos import Picture
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.figures.overlays import Overlay, OverlayRow, patch_overlays
from autoselect.evaluation.figures.style import save
from autoselect.evaluation.latency.timing import Call, measure
from autoselect.pruning.attachment import attach, detach
from autoselect.pruning.selector import Selector
from autoselect.vlm import FrozenVLM

TIMED_ROUNDS = 5


@dataclass(frozen=True)
class Shown:
    """An answer of the model.

    Attributes:
        tokens: visual tokens that the language model saw.
        answer: generated text.
        milliseconds: median time of `generate`, vision encoder included.
        kept: positions of the kept tokens, ascending; None if all stayed.
    """

    tokens: int
    answer: str
    milliseconds: float
    kept: list[int] | None


def inputs_of(vlm: FrozenVLM, picture: Picture) -> dict[str, Any]:
    """Return the arguments of `generate` for the question about a picture."""
    prompt = AskedVLM(vlm).prompt(1, picture.question)
    return vlm.inputs([[picture.image]], [prompt], [f"picture {picture.name!r}"])


def count_tokens(vlm: FrozenVLM, inputs: dict[str, Any]) -> int:
    """Return the number of visual tokens in a prompt."""
    return int(vlm.adapter.is_image(inputs["input_ids"]).sum())


def ask(
    vlm: FrozenVLM,
    selector: Selector,
    inputs: dict[str, Any],
    budgets: tuple[int, ...],
    max_new_tokens: int,
) -> list[Shown]:
    """Return the answers to a prompt, with all visual tokens and then from the largest budget on.

    `inputs` are those of `inputs_of`.
    """
    length, total = inputs["input_ids"].shape[1], count_tokens(vlm, inputs)
    tokenizer, model = vlm.processor.tokenizer, vlm.model
    answers: dict[str, str] = {}
    kept: dict[str, list[int]] = {}

    def generate(name: str) -> None:
        with torch.inference_mode():
            produced = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answers[name] = tokenizer.decode(produced[0, length:], skip_special_tokens=True).strip()

    @contextmanager
    def pruned(name: str, budget: int) -> Iterator[None]:
        attach(model, selector, budget)
        try:
            yield
            kept[name] = kept_positions(model.autoselect.last.images)
        finally:
            detach(model)

    counts = {"all": total} | {str(budget): budget for budget in reversed(budgets)}
    calls = {
        name: Call(
            partial(generate, name), nullcontext if name == "all" else partial(pruned, name, count)
        )
        for name, count in counts.items()
    }
    timings = measure(calls, TIMED_ROUNDS, 1, vlm.device)
    return [
        # A budget holds for each tile if the prompt does not tell tiles from images.
        Shown(
            len(kept.get(name, range(total))), answers[name], timings[name].median, kept.get(name)
        )
        for name in counts
    ]


def kept_positions(images: list[Any]) -> list[int]:
    """Return the kept positions among all visual tokens of a picture, whose tiles are in order."""
    found, start = [], 0
    for image in images:
        found += [start + position for position in image.kept.tolist()]
        start += len(image.scores)
    return found


def draw(
    vlm: FrozenVLM, picture: Picture, shown: list[Shown], folder: Path
) -> tuple[Path | None, str]:
    """Write a picture of what every budget keeps; return its path, or None and the reason."""
    grid = vlm.grid_of(picture.image)
    if grid is None:
        return None, "the tokens of this picture are tiles or have newline tokens between them"
    full = shown[0]
    panels = [Overlay(label(full, full.tokens), None, full.answer, None)]
    panels += [
        Overlay(label(s, full.tokens), s.kept, s.answer, s.answer == full.answer) for s in shown[1:]
    ]
    row = OverlayRow(vlm.seen(picture.image), picture.question, full.answer, tuple(panels))
    path = folder / f"{picture.name}-kept.png"  # not the name of the photo, which may be there
    save(patch_overlays([row], grid), path)
    return path, ""


def label(answer: Shown, total: int) -> str:
    share = "all" if answer.kept is None else f"{100 * answer.tokens / total:.1f} %"
    return f"{answer.tokens} ({share})"
