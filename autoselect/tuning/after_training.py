"""The search at the end of a training, on rows that it did not use."""

import gc
import logging
from collections.abc import Callable
from pathlib import Path

import yaml

from autoselect.config import TrainConfig
from autoselect.config.files import SETTINGS_FILE, from_dict
from autoselect.ranks.exchange import broadcast_object
from autoselect.ranks.shared_folder import is_shared
from autoselect.tuning.run import tune, tuning_table
from autoselect.tuning.settings import TuneSettings
from autoselect.tuning.tracked import TRAINING_RUN, log_beside_training

logger = logging.getLogger(__name__)


def tune_after_training(
    output: str, rank: int, world_size: int, leave_group: Callable[[], None]
) -> None:
    """Tune the selector of a finished training on all its ranks, and log what was found.

    Ranks exchange their answers as files. If some of them do not see the folder of rank 0, rank 0
    tunes alone. The selector is complete without it, so a failure is reported and does not fail the
    training. A collective.

    Args:
        output: output folder of the training.
        rank: rank of this process; rank 0 writes and reports.
        world_size: number of processes, which share the images.
        leave_group: waits for all ranks and ends their group; what follows is for rank 0 alone.
    """
    resolved = Path(output) / SETTINGS_FILE
    text = broadcast_object(resolved.read_text() if rank == 0 else None)
    config = from_dict(TrainConfig, yaml.safe_load(text)["train"])
    if config.tune_images == 0:
        return
    selector = str(Path(output) / "selector")
    settings = TuneSettings(
        config.model,
        selector,
        config.data.train_shards,
        train_run=output,
        budgets=config.tune_budgets,
        images=config.tune_images,
        experiment=config.experiment,
        tracking=config.tracking,
    )
    gc.collect()  # the engine holds itself in circles, and the model is loaded again
    if not is_shared(Path(output)):  # rank 0 has written the selector
        leave_group()
        if rank != 0:
            return
        logger.info("the ranks do not share %s, so rank 0 tunes the selector alone", output)
        world_size = 1
    try:
        tuning = tune(settings, rank, world_size, leave_group)
    except Exception:
        logger.exception("the search for the weight of diversity failed")
        logger.error(
            "the weight of diversity was not tuned, and %s keeps hard top-K; when the fault is "
            "mended, run: autoselect tune --model %s --selector %s --shards '%s' --train-run %s",
            selector,
            config.model,
            selector,
            config.data.train_shards,
            output,
        )
        return
    if tuning is None:
        return
    logger.info("weights of diversity written into %s\n%s", selector, tuning_table(tuning.report))
    run_id = tuning.selector.metadata.get(TRAINING_RUN)
    if config.tracking and run_id is not None:
        log_beside_training(tuning, config.experiment, run_id)
