"""Train a small image classifier for figure 3 on the reference data.

It is a stock `ViTForImageClassification` with 6 x 6 patches of 16 pixels (the VLM has 12 x 12). It
learns the colour of the largest object in the images of the training shards. Training takes about
a minute and happens once.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from autoselect.config import ConfigError
from autoselect.data.shards import ShardSet
from autoselect.reference.scenes import COLOURS, IMAGE_SIZE
from autoselect.vlm.image_classifier import only_patches

logger = logging.getLogger(__name__)
FOLDER = Path("runs/reference/classifier")
PATCH_SIZE = 16
PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
IMAGES, STEPS, BATCH, SEED = 6000, 900, 64, 0
LEARNING_RATE = 1e-3


def largest_object_colour(record: dict[str, Any]) -> int | None:
    """Return the class of a scene, the colour of its largest object; None if it lists none."""
    objects = record.get("objects")
    if not objects:
        return None
    largest = max(objects, key=lambda item: item["box"][2] - item["box"][0])
    return list(COLOURS).index(largest["colour"])


def build_classifier() -> ViTForImageClassification:
    torch.manual_seed(SEED)
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        id2label=dict(enumerate(COLOURS)),
        label2id={colour: index for index, colour in enumerate(COLOURS)},
    )
    return ViTForImageClassification(config)


def train_classifier(samples: ShardSet, folder: Path = FOLDER, steps: int = STEPS) -> Path:
    """Train the classifier and save it in `folder`, unless a model exists there.

    Every second step sees a random half of the patches. Large public classifiers tolerate missing
    patches; a small one has to learn it.

    Raises:
        ConfigError: the samples do not list their objects.
    """
    if (folder / "config.json").is_file():
        return folder
    processor = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    pixels, labels = _examples(samples, processor)
    model = build_classifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    for step in tqdm(range(steps), desc="training the small classifier", unit="step", disable=None):
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        order = torch.rand(BATCH, PATCHES, generator=generator).argsort(dim=1)
        seen = order[:, : PATCHES // 2 if step % 2 else PATCHES]
        with only_patches(model, seen):
            logits = model(pixel_values=pixels[chosen].float() / 127.5 - 1).logits
        loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        processor.save_pretrained(partial)
        model.save_pretrained(partial)
        # Last config.json, which marks a finished model.
        for path in sorted(Path(partial).iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(folder / path.name)
    logger.info("classifier written to %s", folder)
    return folder


def _examples(samples: ShardSet, processor: ViTImageProcessorPil) -> tuple[Tensor, Tensor]:
    """Return pixels (uint8, [M, 3, height, width]) and labels [M] of scenes that list objects."""
    pixels: list[Tensor] = []
    labels: list[int] = []
    total = min(IMAGES, len(samples))
    for index in tqdm(range(total), desc="reading images", unit="image", disable=None):
        label = largest_object_colour(samples[index].record)
        if label is None:
            continue
        scaled = processor(images=samples[index].pictures[0], return_tensors="pt")["pixel_values"][
            0
        ]
        pixels.append(((scaled + 1) * 127.5).round().to(torch.uint8))
        labels.append(label)
    if not labels:
        raise ConfigError(
            "shards: no sample lists its objects, so the small classifier has nothing to learn; "
            "give --classifier a folder of your own"
        )
    return torch.stack(pixels), torch.tensor(labels)
