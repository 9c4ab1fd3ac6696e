"""The selector that a training writes for users."""

import logging
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.config.files import to_dict
from autoselect.pruning.folder import CONFIG_FILE, weights_digest
from autoselect.pruning.hub import HUB_NAME
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
    looks_hosted = HUB_NAME.fullmatch(config.model) and Path(config.model).is_dir()
    metadata = {
        "model": f"./{config.model}" if looks_hosted else config.model,
        "model_name": model.vlm.name,
        "model_digest": model.vlm.digest,
        "data_digest": run.shards.digest,
        "steps": step,
        "seed": config.seed,
        "samples": step * batch_size,
        "token_budget": config.gate.token_budget,
        "min_token_budget": config.gate.lowest_budget,
        "gate": to_dict(config.gate),
        "polarisation": progress.polarisation,
        "tracking_run_id": progress.tracking_run_id,
    }
    write_selector(Selector(model.scorer, metadata, site=config.gate.site), folder)
    logger.info("selector written to %s", folder)


def write_selector(selector: Selector, folder: Path) -> None:
    """Write a trained selector into a folder.

    If the folder has its weights already, because a finished training was started again, the
    selector there leaves it its diversity and what was added to its metadata (search, scores).
    """
    if (before := _of_these_weights(selector, folder)) is not None:
        metadata = before.metadata | selector.metadata
        own = selector.scorer, metadata, before.diversity, before.relevance, selector.site
        selector = Selector(*own)
    selector.save_pretrained(folder)


def _of_these_weights(selector: Selector, folder: Path) -> Selector | None:
    if not (folder / CONFIG_FILE).is_file():
        return None
    try:
        before = Selector.from_pretrained(folder)
    except ConfigError:  # damaged, or of another version; it is replaced
        return None
    same = weights_digest(before.state_dict()) == weights_digest(selector.state_dict())
    return before if same else None
