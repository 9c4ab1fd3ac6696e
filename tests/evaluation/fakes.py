"""Small stand-ins for `FrozenVLM` and `AskedVLM`: colours of image cells are tokens and answers."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image

from autoselect.config import GateConfig
from autoselect.evaluation.asking.asked_vlm import Encoded, ImageTokens, Prompts, sample_boxes
from autoselect.evaluation.asking.replies import Generated
from autoselect.evaluation.samples import EvaluationSample
from autoselect.vlm.blocks import Block
from autoselect.vlm.sites import VisualTokens

GRID = 6
CELL = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class FakeAdapter:
    """Encoder outputs are the tokens themselves."""

    width = 5

    def replace(self, outputs, blocks, tokens):
        return {"image": tokens}

    def tokens(self, blocks, outputs, later=False):
        return outputs["image"], None


class FakeVLM:
    """Tokens are mean cell colours plus a bias channel."""

    name = "fake"
    num_tokens = GRID * GRID
    width = 5
    adapter = FakeAdapter()
    device = torch.device("cpu")
    dtype = torch.float32

    def grid_of(self, image: Image.Image) -> tuple[int, int]:
        return GRID, GRID

    def seen(self, image: Image.Image) -> Image.Image:
        return image

    def tokens_of(self, images: list[Image.Image]) -> torch.Tensor:
        """Return [B, N, D]."""
        pixels = torch.stack([torch.from_numpy(np.array(image)).float() / 255 for image in images])
        cells = pixels.reshape(len(pixels), GRID, CELL, GRID, CELL, 3).mean(dim=(2, 4))
        return torch.nn.functional.pad(cells.reshape(len(pixels), -1, 3), (0, 2), value=0.1)

    def encode_images(
        self, images: list[Image.Image], site: str = "after_projector", names: Any = None
    ) -> VisualTokens:
        tokens = self.tokens_of(images)
        columns = torch.arange(tokens.shape[1])
        blocks = [Block("image", row, columns, 0, 0) for row in range(len(images))]
        return VisualTokens({}, blocks, tokens, tokens, None, self.width)


class FakeAsked:
    """The answer is the colour of the most colourful token that is left."""

    def __init__(self, vlm: Any = None) -> None:
        self.vlm = FakeVLM() if vlm is None else vlm
        self.encoded = 0
        self.lengths: list[int] = []

    def encode(
        self, samples: list[EvaluationSample], attention: bool = False, sites: Any = ()
    ) -> Encoded:
        self.encoded += len(samples)
        tokens = self.vlm.tokens_of([sample.image for sample in samples])
        images = [
            [
                ImageTokens(
                    sample.key,
                    own,
                    self.vlm.width,
                    (GRID, GRID),
                    own[:, 0].clone() if attention else None,
                    sample_boxes(sample),
                )
            ]
            for sample, own in zip(samples, tokens, strict=True)
        ]
        return Encoded(images, None)

    def prompts(self, samples: list[EvaluationSample], encoded: Encoded, places: list) -> Prompts:
        images = [encoded.images[i][0] for i, _ in places]
        texts = [samples[i].questions[r] for i, r in places]
        lengths = torch.tensor([[len(text)] for text in texts])
        return Prompts({"input_ids": lengths}, [], images)

    def question_embeddings(self, prompts: Prompts) -> list[torch.Tensor]:
        steps = torch.arange(1, self.vlm.width + 1)
        return [torch.cos(length * steps) for length in prompts.inputs["input_ids"]]

    def call(self, prompts: Prompts, encoded: Encoded, features: Any = None) -> dict[str, Any]:
        return {"features": prompts.features() if features is None else features}

    def answer_ids(self, image_count: int, question: str, answer: str) -> list[int]:
        """Return the number of the colour, and the end token 9."""
        return [list(COLOURS).index(answer), 9]

    def losses(self, call: dict[str, Any], kept: Any, references: list[list[int]]) -> list[float]:
        """0 for the colour that is seen, 1 for another."""
        said = self.generated(call, kept, {"max_new_tokens": 1})
        pairs = zip(said, references, strict=True)
        return [float(one.ids[:1] != ids[:1]) for one, ids in pairs]

    def generated(
        self, call: dict[str, Any], kept: Any, options: dict[str, Any], likelihood: bool = False
    ) -> list[Generated]:
        """Return answers; one without any token does not end."""
        found = []
        for text in self.generate(call, kept, options):
            number = list(COLOURS).index(text) if text in COLOURS else 8
            ended = self.lengths[len(found) - len(call["features"])] > 0
            found.append(Generated(text, [number, 9] if ended else [number] * 16, ended))
        return found

    def generate(self, call: dict[str, Any], kept: Any, options: dict[str, Any]) -> list[str]:
        assert options["max_new_tokens"] >= 1
        answers = []
        for row, features in enumerate(call["features"]):
            visual = features if kept is None else features[kept[row]]
            if kept is not None:
                assert bool((kept[row].diff() > 0).all())
            self.lengths.append(len(visual))
            answers.append(self.seen(visual[:, :3]) if len(visual) else "red")
        return answers

    @staticmethod
    def seen(colours: torch.Tensor) -> str:
        """Return the name of the most saturated colour, or none."""
        saturation = colours.amax(dim=-1) - colours.amin(dim=-1)
        best = int(saturation.argmax())
        return list(COLOURS)[int(colours[best].argmax())] if saturation[best] > 0.3 else "none"


class FakeSelector:
    """Scores tokens by how colourful they are."""

    diversity = 0.0
    site = "after_projector"
    width = FakeVLM.width
    metadata: dict[str, Any] = {"gate": asdict(GateConfig())}

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
