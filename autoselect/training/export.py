"""The selector that a training writes for users."""

import logging
from pathlib import Path

from autoselect.pruning.selector import Selector
from autoselect.training.parts import Run
from autoselect.training.state import Progress

logger = logging.getLogger(__name__)


def export(run: Run, step: int, batch_size: int, progress: Progress, folder: Path) -> None:
    """Write `selector.safetensors`, `config.json` and the model card into `folder`.

    Args:
        run: the training run; at ZeRO-3 its Scorer must be gathered.
        step: updates made.
        batch_size: rows of one update.
        progress: polarisation and tracked run so far.
        folder: folder of the selector.
    """
    model, config = run.engine.module, run.config
    metadata = {
        "model": config.model,
        "model_name": model.vlm.name,
        "model_digest": model.vlm.digest,
        "data_digest": run.shards.digest,
        "steps": step,
        "seed": config.seed,
        "samples": step * batch_size,
        "token_budget": config.gate.token_budget,
        "min_token_budget": config.gate.lowest_budget,
        "polarisation": progress.polarisation,
        "tracking_run_id": progress.tracking_run_id,
    }
    selector = Selector(model.scorer, metadata, site=config.gate.site)
    selector.save_pretrained(folder)
    logger.info("selector written to %s", folder)
