"""Distributed evaluation, under `torchrun`, the `deepspeed` launcher or `srun`.

    torchrun --standalone --nproc-per-node=8 autoselect/eval.py --model DIR --selector DIR ...

The ranks share the images, and the report is that of a single process. The flags are those of
`autoselect eval`. Start it with `srun --kill-on-bad-exit=1`: ranks wait up to a day for a slow one,
and without that flag they would also wait for one that failed.
"""

import dataclasses
import io
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch.distributed as dist

from autoselect.cli.import_faults import explained_imports
from autoselect.cli.surroundings import settle_in
from autoselect.config import ConfigError
from autoselect.config.destinations import check_folder
from autoselect.config.flags import CommandParser
from autoselect.config.programs import EXIT_INTERRUPTED
from autoselect.ranks import processes, rank_zero
from autoselect.ranks.judge import EXIT_RANK_LOST, RankLostError
from autoselect.ranks.shared_folder import is_shared

logger = logging.getLogger(__name__)
WAIT_SECONDS = 24 * 3600.0


def main(arguments: list[str] | None = None) -> int:
    """Evaluate, and return the exit code; user errors are one line and exit code 2."""
    processes.setup_logging()
    settle_in()
    try:
        with explained_imports():
            return _run(arguments)
    except ConfigError as error:
        rank_zero.report_end(str(error))
        return 2
    except RankLostError as error:
        logger.error("%s", error)
        return EXIT_RANK_LOST
    except KeyboardInterrupt:
        logger.warning("interrupted; the same command resumes")
        return EXIT_INTERRUPTED


def _run(arguments: list[str] | None) -> int:
    from autoselect.evaluation.commands import add_eval_arguments, settings_of

    info = processes.RankInfo.from_environment()
    processes.setup_logging(info)
    parser = CommandParser(prog="autoselect/eval.py", description=__doc__)
    add_eval_arguments(parser)
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the deepspeed launcher")
    silent = None if info.is_main else io.StringIO()  # all ranks are started with the same flags
    with redirect_stdout(silent or sys.stdout), redirect_stderr(silent or sys.stderr):
        options = parser.parse_args(arguments)
    from autoselect.evaluation.run import evaluate  # imports transformers

    device = processes.choose_device(info)
    processes.init_distributed(info, device, WAIT_SECONDS, for_deepspeed=False)
    settings = settings_of(options)
    settings = dataclasses.replace(settings, device=settings.device or str(device))
    check_shared(settings.out)
    evaluate(settings, info.rank, info.world_size, dist.barrier, rank_zero.on_main)
    processes.shutdown_distributed()
    return 0


def check_shared(out: str) -> None:
    """Create the output folder, where ranks exchange their answers (a collective).

    Raises:
        ConfigError: it cannot be written, or some rank does not see the files of rank 0 there.
    """

    def create() -> None:
        check_folder("out", out)
        Path(out).mkdir(parents=True, exist_ok=True)

    rank_zero.on_main(create)  # before others look it up: NFS remembers what was missing
    if not is_shared(Path(out)):
        raise ConfigError(
            f"--out {out} must be a folder that all ranks see, because they exchange their answers "
            "there, and some do not see the files of rank 0; choose a folder on a shared file "
            "system, or start the ranks on one node"
        )


if __name__ == "__main__":
    processes.leave(main())
