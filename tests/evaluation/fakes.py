"""A small stand-in for `FrozenVLM`: colours of image cells are its tokens and its answers."""

import numpy as np
import torch
from PIL import Image

from autoselect.evaluation.samples import EvaluationSample
from autoselect.vlm.backbone import VisualTokens

GRID = 6
CELL = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class FakeVLM:
    """Tokens are mean cell colours plus a bias channel; the answer is the colour that it sees."""

    name = "fake"
    num_tokens = GRID * GRID
    is_spliced = True
    width = 5
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        self.encoded = 0
        self.lengths: list[int] = []

    def width_at(self, site: str) -> int:
        return self.width

    def finished(self, tokens: torch.Tensor, site: str) -> torch.Tensor:
        return tokens

    def pixel_inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([torch.from_numpy(np.array(image)).float() / 255 for image in images])
        return {"pixel_values": pixels}

    def to_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs

    def encode(
        self,
        inputs: dict[str, torch.Tensor],
        class_attention: bool = False,
        before_projector: bool = False,
    ) -> VisualTokens:
        pixels = inputs["pixel_values"]
        self.encoded += len(pixels)
        cells = pixels.reshape(len(pixels), GRID, CELL, GRID, CELL, 3).mean(dim=(2, 4))
        tokens = torch.nn.functional.pad(cells.reshape(len(pixels), -1, 3), (0, 2), value=0.1)
        attention = tokens[..., 0].clone() if class_attention else None
        return VisualTokens(tokens, None, (GRID, GRID), attention)

    def encode_images(
        self, images: list[Image.Image], class_attention: bool = False
    ) -> VisualTokens:
        return self.encode(self.pixel_inputs(images), class_attention)

    def prompt(self, questions: list[str]) -> dict[str, torch.Tensor]:
        longest = max(len(question) for question in questions)
        ids = [[0] * (longest - len(q)) + [ord(c) for c in q] for q in questions]
        input_ids = torch.tensor(ids)
        return {"input_ids": input_ids, "attention_mask": (input_ids > 0).long()}

    def prefix(
        self,
        prompt: dict[str, torch.Tensor],
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        if positions is not None:
            assert positions.shape == tokens.shape[:2]
            assert bool((positions.diff(dim=1) > 0).all())
        text = prompt["input_ids"][..., None].expand(-1, -1, self.width) / 128
        return {
            "inputs_embeds": torch.cat([tokens, text], dim=1),
            "attention_mask": torch.cat(
                [torch.ones(tokens.shape[:2], dtype=torch.long), prompt["attention_mask"]], dim=1
            ),
            "visual": tokens,
        }

    def generate(self, prefix: dict[str, torch.Tensor], max_new_tokens: int) -> list[str]:
        assert max_new_tokens >= 1
        visual = prefix["visual"]
        self.lengths.append(visual.shape[1])
        if visual.shape[1] == 0:
            return ["red"] * len(visual)
        colourful = visual[..., :3].amax(dim=-1) - visual[..., :3].amin(dim=-1)
        best = colourful.argmax(dim=-1)
        channel = visual[torch.arange(len(visual)), best, :3].argmax(dim=-1)
        saturated = colourful.amax(dim=-1) > 0.3
        names = list(COLOURS)
        return [
            names[c] if seen else "none"
            for c, seen in zip(channel.tolist(), saturated.tolist(), strict=True)
        ]

    def prefill(self, prefix: dict[str, torch.Tensor]) -> torch.Tensor:
        return prefix["inputs_embeds"].sum(dim=1)


class FakeSelector:
    """Scores tokens by how colourful they are."""

    diversity = 0.0
    width = FakeVLM.width
    metadata: dict[str, str] = {}

    def score(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return tokens[..., :3].amax(dim=-1) - tokens[..., :3].amin(dim=-1)

    def select(
        self, tokens: torch.Tensor, budget: int, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        positions = self.score(tokens).topk(budget, dim=-1).indices.sort(dim=-1).values
        return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[2])), positions


def make_samples(count: int, seed: int = 0) -> list[EvaluationSample]:
    """Grey noise with one coloured cell; questions about it in two tasks."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        pixels = np.repeat(
            rng.integers(60, 200, size=(GRID * CELL, GRID * CELL, 1), dtype=np.uint8), 3, axis=2
        )
        row, column = (int(v) for v in rng.integers(GRID, size=2))
        colour = list(COLOURS)[int(rng.integers(3))]
        top, left = row * CELL, column * CELL
        pixels[top : top + CELL, left : left + CELL] = COLOURS[colour]
        box = (left, top, left + CELL, top + CELL)
        samples.append(
            EvaluationSample(
                key=f"{seed}-{i:04d}",
                images=(Image.fromarray(pixels),),
                questions=("which colour ?", "and what colour is the cell ?"),
                answers=((colour,), (colour,)),
                tasks=("short", "long"),
                boxes=((box,), (box,)),
            )
        )
    return samples
