"""Restartable, distributed evaluation: answers part by part, each part one file.

A part is a fixed sequence of images. Its answers do not depend on the number of ranks, so the
merged answers do not either. A part whose file exists is not computed again.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autoselect.config.remaining import Remaining
from autoselect.evaluation.answers.answering import Plan, answer_part
from autoselect.evaluation.answers.served import ServedVLM, served_part
from autoselect.evaluation.asking.replies import Replies, Reply
from autoselect.evaluation.identity import digest
from autoselect.evaluation.samples import EvaluationSample
from autoselect.files.atomic import write_text

logger = logging.getLogger(__name__)


def read_result(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None, to make it again, if it is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        logger.warning("%s is damaged and is made again", path)
        return None
    return found


class PartStore:
    """The answered parts of one evaluation; every fingerprint has its own sub-folder of `folder`.

    Args:
        folder: folder of the sub-folders.
        identity: everything the answers depend on (digests of model, selector and data; the plan).
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.fingerprint = digest(identity)
        self.folder = folder / self.fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, index: int) -> Path:
        return self.folder / f"part-{index:06d}.json"

    def write(self, index: int, replies: dict[str, Replies]) -> None:
        """Store the replies of a part atomically, each as a list of its four fields."""
        rows = {
            column: [[list(vars(reply).values()) for reply in own] for own in images]
            for column, images in replies.items()
        }
        write_text(self.path(index), json.dumps(rows))

    def merge(self, parts: int) -> dict[str, Replies]:
        merged: dict[str, Replies] = {}
        for index in range(parts):
            for column, images in json.loads(self.path(index).read_text()).items():
                rows = [[Reply(*fields) for fields in own] for own in images]
                merged.setdefault(column, []).extend(rows)
        return merged


def other_image(samples: Sequence[EvaluationSample], index: int, shown: str) -> EvaluationSample:
    """Return the sample whose images replace those of sample `index`: the first that shows others.

    The search begins half a data set further on, because neighbours often show one image. `shown`
    is the digest of the sample's own images.
    """
    count = len(samples)
    for place in range(index + count // 2, index + count // 2 + count):
        other = samples[place % count]
        if not shown or other.image_digest != shown:
            return other
    raise ValueError("all samples show one image")


def answer_all(
    asked: Any,
    samples: Sequence[EvaluationSample],
    plan: Plan,
    store: PartStore,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] | None = None,
) -> dict[str, Replies]:
    """Return all replies, on every rank: column name -> image -> round -> reply.

    Part p belongs to rank p mod world_size; `store` needs a folder that all ranks share. `barrier`
    waits for all ranks and is required if there are several.
    """
    assert world_size == 1 or barrier is not None, "several ranks need a barrier"
    size = plan.images_per_part
    parts = -(-len(samples) // size)
    mine = [p for p in range(rank, parts, world_size) if read_result(store.path(p)) is None]
    logger.info("evaluating %d of %d parts (%d images each)", len(mine), parts, size)
    remaining = Remaining(len(mine))
    answer: Any = served_part if isinstance(asked, ServedVLM) else answer_part
    for part in tqdm(mine, desc="evaluating", unit="part", disable=None if rank == 0 else True):
        numbers = range(part * size, min(len(samples), (part + 1) * size))
        own = [samples[i] for i in numbers]
        others = []
        if plan.others:
            pairs = zip(numbers, own, strict=True)
            others = [other_image(samples, i, sample.image_digest) for i, sample in pairs]
        store.write(part, answer(asked, own, plan, others))
        remaining.done += 1
        if rank == 0 and not sys.stderr.isatty():
            logger.info("part %d of %d, %s", remaining.done, len(mine), remaining)
    if barrier is not None:
        barrier()
    return store.merge(parts)
