"""Training: `deepspeed autoselect/train.py --deepspeed configs/deepspeed/zero2.json`.

Without other flags it trains the reference run. `--config FILE.yaml` and dotted settings such as
`--gate.token_budget 32` change it; `--help` describes them all.
"""

import argparse
import dataclasses
import logging

from autoselect.cli import import_faults, surroundings
from autoselect.config import ConfigError, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.config.flags import settings_help
from autoselect.config.programs import DEFAULT_DEEPSPEED
from autoselect.data.quarantine import QuarantineBudgetError
from autoselect.ranks import processes, rank_zero
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.judge import RankFailedError
from autoselect.ranks.signals import SignalFlag
from autoselect.training.remarks import cause_of_end
from autoselect.training.update_guard import NumbersError

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(
        prog="autoselect/train.py",
        description="Train a visual token selector around a frozen VLM.",
        epilog=settings_help(TrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    deepspeed = f"batch sizes, ZeRO stage and clipping (default {DEFAULT_DEEPSPEED})"
    parsed.add_argument("--deepspeed", metavar="JSON", default=DEFAULT_DEEPSPEED, help=deepspeed)
    parsed.add_argument("--config", metavar="YAML", help="settings that the flags below override")
    parsed.add_argument("--local_rank", type=int, default=-1, help="set by the deepspeed launcher")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """Train, and return the exit code; user errors are one line and exit code 2."""
    options, flags = parser().parse_known_args(arguments)
    processes.setup_logging()
    surroundings.settle_in()
    signals = SignalFlag(met=False)  # a USR1 before the first step ends the run after it
    try:
        info = processes.RankInfo.from_environment()
        processes.setup_logging(info)
        config = load_config(TrainConfig, options.config, flags)
        deepspeed = DeepSpeedConfig.load(options.deepspeed)
        processes.set_accelerator_default()
        processes.init_distributed(info, processes.choose_device(info))
        signals.ranks_met()
        with Heartbeat(info) as heartbeat:
            finished = _train(config, deepspeed, info, signals, heartbeat)
        if finished:
            signals.end_at_once()
            from autoselect.tuning.after_training import tune_after_training as tune

            with processes.patient_collectives():
                tune(config.output, info.rank, info.world_size, processes.shutdown_distributed)
        processes.shutdown_distributed()
        return 0 if finished else processes.EXIT_PREEMPTED
    except (ConfigError, NumbersError, QuarantineBudgetError, RankFailedError) as error:
        rank_zero.report_end(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except (OSError, RuntimeError) as error:
        cause, code = cause_of_end(error)
        if not cause:
            raise
        logger.error("%s", cause)
        return code


def _train(
    config: TrainConfig,
    deepspeed: DeepSpeedConfig,
    info: processes.RankInfo,
    signals: SignalFlag,
    heartbeat: Heartbeat,
) -> bool:
    # Takes seconds, or minutes if the disk is cold.
    with heartbeat.independently("importing the program"), import_faults.explained_imports():
        from autoselect.reference.resources import resolve_model, resolve_shards
        from autoselect.training.run import assemble

    heartbeat.progress("resolving model and shards")
    config = dataclasses.replace(config, model=resolve_model(config.model))
    shards = rank_zero.on_main(lambda: resolve_shards(config.data.train_shards))
    data = dataclasses.replace(config.data, train_shards=shards)
    config = dataclasses.replace(config, data=data)
    return assemble(config, deepspeed, info, signals, heartbeat).run()


if __name__ == "__main__":
    processes.leave(main())
