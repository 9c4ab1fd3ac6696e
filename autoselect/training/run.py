"""A training run from its configuration to the exported selector.

`assemble` reads from top to bottom: load the frozen VLM, open the shards, read the last checkpoint
or calibrate, build the model and its engine. The `Trainer` then makes the steps and exports.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig, resolved_settings
from autoselect.config.destinations import check_folder, check_run_folder
from autoselect.config.extras import extra
from autoselect.config.files import SETTINGS_FILE
from autoselect.data.loader import pictured_batches
from autoselect.data.pictured import report_pictures
from autoselect.data.shards import ShardSet
from autoselect.files.atomic import write_text
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import TokenStatistics, calibrate
from autoselect.ranks import host_memory, processes, rank_zero
from autoselect.ranks.exchange import broadcast_object
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.signals import SignalFlag
from autoselect.training.budgets import check_budgets
from autoselect.training.checkpoint import CheckpointStore
from autoselect.training.parts import Run, origin_of
from autoselect.training.remarks import course
from autoselect.training.resume import check_resumable
from autoselect.training.sharded_loading import sharded_loading
from autoselect.training.trainer import Trainer
from autoselect.training.zero_settings import check_zero
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import Collator
from autoselect.vlm.loading import check_model, default_dtype, download, named_dtype
from autoselect.vlm.quantised import check_trainable
from autoselect.vlm.sharded import gathered
from autoselect.vlm.sites import SITES

logger = logging.getLogger(__name__)
CALIBRATION_BATCH = 8
"""Images encoded at once; the states of a tower for 8 images of five tiles take about 1 GB."""


def assemble(
    config: TrainConfig,
    deepspeed: DeepSpeedConfig,
    info: processes.RankInfo,
    signals: SignalFlag,
    heartbeat: Heartbeat,
) -> Trainer:
    """Build a trainer at the step it starts from; its `run` trains and exports the selector.

    Args:
        config: settings of the training.
        deepspeed: batch sizes, ZeRO stage and clipping.
        info: rank of this process; the ranks have met.
        signals: remembers signals since the process began.
        heartbeat: watches the ranks since they met.

    Raises:
        ConfigError: model, shards, budget or batch sizes do not fit.
        CheckpointError: there are checkpoints but none can be used.
        RankLostError, RankFailedError: another rank is dead or stalled, or failed.
    """
    check_zero(deepspeed)
    check_folder("output", config.output)
    rank_zero.on_main(lambda: check_run_folder(Path(config.output)))
    device = processes.choose_device(info)
    if device.type == "cpu":
        host_memory.keep_freed()
    vlm = load_frozen(config, deepspeed, info, device, heartbeat)
    check_budgets(config, vlm.num_tokens)
    SITES[config.gate.site].check(vlm.adapter)
    warn_of_few_cores(config, info)
    sizes = deepspeed.split(info.world_size)  # refuse a wrong split before anything is written
    with heartbeat.independently("opening the shards"):
        shards = ShardSet.open(config.data.train_shards)
    if info.is_main:
        logger.info("%s", course(config.steps, deepspeed.total_batch, len(shards)))
    heartbeat.progress("reading the checkpoint or calibrating")
    collator = Collator(vlm, config.data.rounds, config.data.max_text_tokens)
    store = CheckpointStore(Path(config.output) / "checkpoints", keep=config.keep_checkpoints)
    origin = origin_of(shards, vlm, deepspeed, config.model)
    state = store.load()
    if state is None:
        batch_size = sizes.micro * sizes.accumulation * info.world_size
        with heartbeat.independently("looking for pictures in the indexes"):
            rank_zero.on_main(
                lambda: report_pictures(shards, config.seed, batch_size, config.steps)
            )
        statistics = shared_statistics(vlm, shards, collator, config, deepspeed.zero_stage)
    else:
        check_resumable(state, config, origin)
        statistics = TokenStatistics.from_tensors(state.statistics)
    if info.is_main:
        write_resolved(config, deepspeed)
    heartbeat.progress("building the engine")
    processes.seed_everything(config.seed)  # loading draws differently at each ZeRO stage
    model = AutoSelect(vlm, config, statistics.to(device))
    engine = build_engine(model, config, deepspeed)
    run = Run(
        config=config,
        deepspeed=deepspeed,
        info=info,
        device=device,
        signals=signals,
        heartbeat=heartbeat,
        shards=shards,
        collator=collator,
        engine=engine,
        store=store,
        origin=origin,
    )
    return Trainer(run, state)


def load_frozen(
    config: TrainConfig,
    deepspeed: DeepSpeedConfig,
    info: processes.RankInfo,
    device: torch.device,
    heartbeat: Heartbeat,
) -> FrozenVLM:
    """Load the VLM on every rank; at ZeRO-3 each rank keeps a part of it."""
    # cuDNN attention with a mask gives NaN gradients for some lengths:
    # github.com/pytorch/pytorch/issues/196678
    torch.backends.cuda.enable_cudnn_sdp(False)
    dtype = named_dtype(config.dtype)
    sharded = sharded_loading(deepspeed, dtype or default_dtype(device))
    patient = processes.patient_collectives()
    with heartbeat.independently("loading the model"), patient:
        rank_zero.on_first_of_node(lambda: download(config.model), info.local_rank)
        if deepspeed.zero_stage == 3:
            check_model(config.model)  # inside `sharded`, transformers reports less
        with sharded:
            vlm = FrozenVLM.from_pretrained(config.model, dtype=dtype, device=device)
    check_trainable(config.model, vlm.model.config, device)
    return vlm


def warn_of_few_cores(config: TrainConfig, info: processes.RankInfo) -> None:
    """Warn if decoders and training share the one core that Slurm gives a task by default."""
    if not (info.is_main and info.source == "slurm"):
        return
    cores, wanted = len(os.sched_getaffinity(0)), 1 + config.data.workers
    if cores < wanted:
        logger.warning(
            "data.workers=%d, but this task has %d core(s); give sbatch --cpus-per-task=%d, or "
            "decoding slows down every step",
            config.data.workers,
            cores,
            wanted,
        )


def write_resolved(config: TrainConfig, deepspeed: DeepSpeedConfig) -> None:
    """Write the resolved configuration to `OUTPUT/config.yaml`."""
    resolved = resolved_settings(config, deepspeed)
    write_text(Path(config.output) / SETTINGS_FILE, yaml.safe_dump(resolved, sort_keys=False))


def shared_statistics(
    vlm: FrozenVLM, shards: ShardSet, collator: Collator, config: TrainConfig, stage: int
) -> TokenStatistics:
    """Calibrate on rank 0 and return its statistics on every rank (a collective).

    At ZeRO-3 the other ranks calibrate too, because each forward pass needs their shards.
    """

    def calibrated() -> dict[str, Tensor]:
        return calibrate_on(vlm, shards, collator, config).tensors()

    if stage < 3:
        return TokenStatistics.from_tensors(rank_zero.on_main(calibrated))
    with gathered(vlm.vision_parameters()):
        own = calibrated()
    return TokenStatistics.from_tensors(broadcast_object(own))


def calibrate_on(
    vlm: FrozenVLM, shards: ShardSet, collator: Collator, config: TrainConfig
) -> TokenStatistics:
    """Measure the statistics of the tokens that are gated, over the first samples."""
    site = config.gate.site

    def batches() -> Iterator[Tensor]:
        images = config.gate.calibration_images
        for batch in pictured_batches(shards, collator, images, CALIBRATION_BATCH):
            if not batch.num_images:
                continue
            pixels, ids = vlm.to_device(batch.pixels), batch.input_ids.numpy()
            visual = SITES[site].read(vlm.adapter, pixels, ids, batch.tokens_per_image)
            yield visual.real(visual.gated)

    rank = config.gate.noise_rank if config.gate.noise == "covariance" else None
    width = vlm.width_at(site)
    statistics = calibrate(batches(), rank, width)
    if config.gate.noise == "isotropic":
        statistics = statistics.isotropic(width)
    logger.info(
        "calibrated on visual tokens of width %d, participation ratio %.1f",
        len(statistics.mean),
        statistics.participation_ratio,
    )
    return statistics


def build_engine(model: AutoSelect, config: TrainConfig, deepspeed: DeepSpeedConfig) -> Any:
    """Build a DeepSpeed engine that optimises the trainable parameters only."""
    with extra("training"):
        import deepspeed as ds

    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if p.ndim >= 2],
            "weight_decay": config.optimizer.weight_decay,
        },
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    engine, _, _, _ = ds.initialize(
        model=model, model_parameters=groups, config=deepspeed.to_dict()
    )
    return engine
