"""Training: `deepspeed autoselect/train.py --deepspeed configs/deepspeed/zero2.json`.

Without other flags it trains the reference run. `--config FILE.yaml` and dotted settings such as
`--gate.token_budget 32` change anything; `--help` lists them.
"""

import argparse
import dataclasses
import logging
from pathlib import Path

from autoselect.cli.import_faults import explained_imports
from autoselect.config import ConfigError, TrainConfig
from autoselect.config.deepspeed import load_deepspeed_config
from autoselect.config.files import flatten, load_config, to_dict
from autoselect.data.quarantine import QuarantineBudgetError
from autoselect.ranks import processes, rank_zero
from autoselect.ranks.heartbeat import Heartbeat, lost_contact
from autoselect.ranks.judge import EXIT_RANK_LOST, RankFailedError, RankLostError
from autoselect.training.update_guard import NumbersError

logger = logging.getLogger(__name__)
DEFAULT_DEEPSPEED = "configs/deepspeed/zero2.json"


def parser() -> argparse.ArgumentParser:
    """Flags of the launcher and of the run; settings are read from what remains."""
    settings = "\n".join(f"  --{k} {v}" for k, v in flatten(to_dict(TrainConfig())).items())
    parsed = argparse.ArgumentParser(
        prog="autoselect/train.py",
        description="Train a visual token selector around a frozen VLM.",
        epilog=f"settings and their defaults:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parsed.add_argument("--deepspeed", metavar="JSON", default=DEFAULT_DEEPSPEED)
    parsed.add_argument("--config", metavar="YAML", default=None)
    parsed.add_argument("--local_rank", type=int, default=-1, help="set by the deepspeed launcher")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """Run the training; user errors are one line and exit code 2."""
    options, flags = parser().parse_known_args(arguments)
    processes.setup_logging()
    signals = processes.SignalFlag(met=False)  # USR1 meanwhile is answered after the first step
    try:
        info = processes.RankInfo.from_environment()
        processes.setup_logging(info)
        config = load_config(TrainConfig, options.config, flags)
        deepspeed = load_deepspeed_config(Path(options.deepspeed))
        processes.set_accelerator_default()
        processes.init_distributed(info, processes.choose_device(info))
        signals.ranks_met()
        with Heartbeat(info) as heartbeat:
            finished = _train(config, deepspeed, info, signals, heartbeat)
        processes.shutdown_distributed()
        return 0 if finished else processes.EXIT_PREEMPTED
    except ConfigError as error:
        logger.error("%s", error)
        return 2
    except (NumbersError, QuarantineBudgetError, RankFailedError) as error:
        logger.error("%s", error)
        return 1
    except RankLostError as error:
        logger.error("%s", error)
        return EXIT_RANK_LOST
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        logger.error("the other ranks were lost: %s", error)
        return EXIT_RANK_LOST


def _train(
    config: TrainConfig,
    deepspeed: dict,
    info: processes.RankInfo,
    signals: processes.SignalFlag,
    heartbeat: Heartbeat,
) -> bool:
    # Seconds, or minutes of a cold disk.
    with heartbeat.independently("importing the program"), explained_imports():
        from autoselect.reference.resources import resolve_model, resolve_shards
        from autoselect.training.run import train

    heartbeat.progress("resolving model and shards")
    model = resolve_model(config.model)
    shards = rank_zero.on_main(lambda: resolve_shards(config.data.train_shards))
    data = dataclasses.replace(config.data, train_shards=shards)
    resolved = dataclasses.replace(config, model=model, data=data)
    return train(resolved, deepspeed, info, signals, heartbeat)


if __name__ == "__main__":
    processes.leave(main())
