"""Loss on rows that are not trained on, and the end of a training whose loss no longer falls.

The gates are those of the end of training: the largest budget, the last temperature, and the same
noise at every measurement. With the temperature of the step, the loss would rise because gates
close, and the training would end although the Scorer still learns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from autoselect.config import ConfigError, TrainConfig, ValidationConfig
from autoselect.data.faults import BadSample
from autoselect.data.loader import collate_usable
from autoselect.data.order import epoch_slice
from autoselect.data.shards import Sample, ShardSet
from autoselect.method.gating import GateSetting
from autoselect.pruning.selector import Selector
from autoselect.ranks.exchange import any_true
from autoselect.training.export import write_selector
from autoselect.training.parts import Run
from autoselect.training.state import Progress
from autoselect.training.update_guard import NumbersError

logger = logging.getLogger(__name__)
BEST_FOLDER = "best"
HELD_OUT = "held-out"


def check_held_out(config: TrainConfig, rows: int, batch_size: int) -> None:
    """Check that enough of the training's `rows` are left for a validation without own shards.

    Raises:
        ConfigError: the training uses some of them.
    """
    count, used = config.validation.images, config.steps * batch_size
    if config.validation.every and config.validation.shards == HELD_OUT and used + count > rows:
        raise ConfigError(
            f"validation.images={count}: {config.steps} steps of {batch_size} rows leave "
            f"{max(0, rows - used)} of the {rows} rows of data.train_shards="
            f"{config.data.train_shards} unused; give validation.shards, or lower steps or "
            "validation.images"
        )


def held_out_rows(config: TrainConfig, shards: ShardSet, batch_size: int) -> list[Sample]:
    """Return the rows of the validation, decoded; rows that cannot be used are left out.

    Without shards of its own it takes the last rows in the order of the training.

    Raises:
        ConfigError: the training uses those rows, or none of them has an image.
    """
    own, count = config.validation, config.validation.images
    if own.shards != HELD_OUT:
        shards = ShardSet.open(own.shards)
        ids: Sequence[int] = range(min(count, len(shards)))
    else:
        rows = len(shards)
        check_held_out(config, rows, batch_size)
        ids = epoch_slice(rows, config.seed, 0, rows - count, rows).tolist()
    found = []
    for sample_id in ids:
        try:
            sample = shards[sample_id]
            if sample.pictures:
                found.append(sample)
        except BadSample as error:
            logger.warning("left out of the validation: %s", error)
    if not found:
        raise ConfigError(
            f"validation: none of {len(ids)} rows has a usable image; give validation.shards"
        )
    return found


def warn_of_trained_rows(own: str, shards: ShardSet) -> None:
    """Warn if shards of the validation are among those of the training, under any name."""
    if own == HELD_OUT:
        return
    trained = {header.sha256 for header in shards.headers}
    common = [header for header in ShardSet.open(own).headers if header.sha256 in trained]
    if common:
        logger.warning(
            "%d shards of validation.shards=%s are trained on, so the held-out loss is not that of "
            "new rows; give other shards, or validation.shards=%s",
            len(common),
            own,
            HELD_OUT,
        )


def rows_digest(rows: Sequence[Sample]) -> str:
    """Return a digest of texts and pictures."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps([row.key, row.record, [len(image) for image in row.images]])
        for part in (text.encode(), *row.images):
            digest.update(part)
    return digest.hexdigest()


class Validation:
    """Measures the held-out loss and remembers the lowest one.

    Args:
        run: the training run.
        micro_batch: rows per forward pass of one rank.
        rows: see `held_out_rows`.

    Raises:
        ConfigError: no row has an image and an answer; raised on every rank.
    """

    def __init__(self, run: Run, micro_batch: int, rows: Sequence[Sample]) -> None:
        self.run = run
        self.config = run.config.validation
        self.digest = rows_digest(rows)
        chunks = [rows[i : i + micro_batch] for i in range(0, len(rows), micro_batch)]
        world = run.info.world_size
        own = chunks[run.info.rank :: world]
        # At ZeRO-3 all ranks make equally many passes; those beyond a rank's own count nothing.
        self._passes = -(-len(chunks) // world)
        self._counted = len(own)
        collated = [collate_usable(run.collator, chunk) for chunk in own or chunks[:1]]
        self._batches = [batch for batch, _ in collated]
        for fault in (fault for _, faults in collated[: len(own)] for fault in faults):
            logger.warning("left out of the validation: %s", fault)
        answers = sum(batch.num_answer_tokens for batch in self._batches[: len(own)])
        if not any_true(answers > 0, run.device):
            raise ConfigError(
                f"validation: none of {len(rows)} rows has a usable answer, so the held-out loss "
                "is unknown; give other validation.shards"
            )

    def resumed(self, progress: Progress) -> Progress:
        """Return the progress with the digest of the rows.

        Raises:
            ConfigError: earlier losses were measured on other rows.
        """
        if progress.held_out_digest not in (None, self.digest):
            raise ConfigError(
                f"output={self.run.config.output} holds a run whose held-out rows were others; "
                f"restore validation.shards={self.config.shards}, or choose another output folder"
            )
        return replace(progress, held_out_digest=self.digest)

    def due(self, step: int) -> bool:
        return step % self.config.every == 0 or step == self.run.config.steps

    @torch.no_grad()
    def loss(self) -> float:
        """Return the mean next-token loss over all held-out answer tokens (a collective)."""
        engine, gate = self.run.engine, self.run.config.gate
        setting = GateSetting(gate.token_budget, gate.temperature_end, self.run.config.seed, step=0)
        totals = torch.zeros(2, dtype=torch.float64, device=self.run.device)
        engine.eval()
        for number in range(self._passes):
            batch = self._batches[min(number, len(self._batches) - 1)]
            output = engine(batch.to(self.run.device), setting)
            if number < self._counted:
                totals[0] += output.loss_sum.double()
                totals[1] += output.answer_tokens
        engine.train()
        dist.all_reduce(totals)
        return float(totals[0] / totals[1])


def is_over(config: ValidationConfig, progress: Progress) -> bool:
    """Return True if the held-out loss has not fallen for as long as a training waits."""
    return 0 < config.patience <= progress.since_best


def judged(progress: Progress, step: int, loss: float) -> Progress:
    """Return the progress after a measurement; a loss that is not finite is never the best."""
    if not math.isfinite(loss):
        logger.warning(
            "held-out loss %s of step %d is not finite and counts as no improvement; look for rows "
            "whose numbers overflow in the VLM's dtype",
            loss,
            step,
        )
    elif progress.best_loss is None or loss < progress.best_loss:
        return replace(progress, best_loss=loss, best_step=step, since_best=0)
    return replace(progress, since_best=progress.since_best + 1)


def check_best(output: Path, progress: Progress) -> None:
    """Check that the selector of the lowest held-out loss so far is where training left it.

    Raises:
        ConfigError: it is missing, or of another step.
    """
    if progress.best_step is None:
        return
    folder = output / BEST_FOLDER
    try:
        step = json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]["steps"]
    except (OSError, ValueError, LookupError, TypeError):
        step = None
    if step != progress.best_step:
        raise ConfigError(
            f"{folder} must hold the selector of step {progress.best_step}, which had the lowest "
            f"held-out loss, and holds {'none' if step is None else f'that of step {step}'}; "
            "restore it from a backup, or choose another output folder to train anew"
        )


def take_best(output: Path, selector: Path, progress: Progress) -> None:
    """Write the selector of the lowest held-out loss to where users look for it.

    Raises:
        NumbersError: no held-out loss was finite.
    """
    if progress.best_step is None:
        raise NumbersError(
            f"no held-out loss was finite, so no selector is the best one; the last weights are in "
            f"the checkpoints of {output}. Look for rows of validation.shards whose numbers "
            "overflow in the VLM's dtype, or set validation.patience to 0"
        )
    write_selector(Selector.from_pretrained(output / BEST_FOLDER), selector)
    logger.info(
        "selector of step %s, with the lowest held-out loss %.4f, written to %s",
        progress.best_step,
        progress.best_loss,
        selector,
    )


def validation_of(run: Run, micro_batch: int, batch_size: int) -> Validation | None:
    """Return the `Validation` of a run, or None if it has none (a collective).

    Args:
        run: the training run.
        micro_batch: rows per forward pass of one rank.
        batch_size: rows of one update.
    """
    if not run.config.validation.every:
        return None
    with run.heartbeat.independently("reading the held-out rows"):
        if run.info.is_main:
            warn_of_trained_rows(run.config.validation.shards, run.shards)
        rows = held_out_rows(run.config, run.shards, batch_size)
    return Validation(run, micro_batch, rows)
