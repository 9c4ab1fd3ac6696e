"""Ranks of `tests/test_shared_quarantine.py`.

Usage: quarantine_worker.py lists FOLDER | trainer FOLDER   (ranks come from the environment)

`lists` exchanges planted lists; `trainer` trains on FOLDER/damaged, in which the samples of one
step are unusable, one on each rank. Every rank writes what it saw to FOLDER/WHAT-RANK.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import from_dict
from autoselect.data.faults import Fault
from autoselect.data.quarantine import Quarantine, QuarantineBudgetError
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.processes import RankInfo, leave, shutdown_distributed
from autoselect.ranks.signals import SignalFlag
from autoselect.training.shared_quarantine import SharedQuarantine
from tests.workers.toy import CONFIGS, start


def fault(number: int) -> Fault:
    return Fault("payload", "train-000000.tar", f"{number:06d}", number, "sha256 differs")


def lists(folder: Path, info: RankInfo) -> list[object]:
    """Exchange lists under a budget of 4 in 40: duplicates count once, the fifth ends all ranks."""
    own = folder / f"quarantine-{info.rank}.jsonl"
    if info.is_main:
        own.write_text(json.dumps(fault(1).as_dict()) + "\n")  # from before a restart
    shared = SharedQuarantine(Quarantine(40, 0.1, own))
    seen: list[object] = [shared.quarantine.count, shared.new]
    shared.quarantine.add([fault(2), fault(10 + info.rank)])
    seen.append(shared.new)
    shared.check(new_anywhere=4)
    seen += [shared.quarantine.count, shared.new]
    shared.check(new_anywhere=0)
    if not info.is_main:
        shared.quarantine.merge([fault(20)])
    try:
        shared.check(new_anywhere=1)
    except QuarantineBudgetError as error:
        seen.append(str(error))
    return [*seen, len(own.read_text().splitlines())]


def trainer(folder: Path, info: RankInfo) -> list[object]:
    from autoselect.training.run import assemble

    deepspeed = DeepSpeedConfig.load(CONFIGS / "zero2.json").with_batch(4, 2)
    values = {
        "model": str(folder / "vlm"),
        "output": str(folder / "run"),
        "steps": 5,
        "save_every": 1,
        "tracking": False,
        "data": {
            "train_shards": str(folder / "damaged" / "train-*.tar"),
            "quarantine_budget": 1.5 / 32,
        },
        "gate": {"calibration_images": 2},
    }
    config = from_dict(TrainConfig, values)
    try:
        with Heartbeat(info) as heartbeat:
            assemble(config, deepspeed, info, SignalFlag(), heartbeat).run()
    except QuarantineBudgetError as error:
        return [str(error)]
    return []


def main(what: str, folder: Path) -> None:
    info = start()
    seen = {"lists": lists, "trainer": trainer}[what](folder, info)
    (folder / f"{what}-{info.rank}.json").write_text(json.dumps(seen))
    shutdown_distributed()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    leave(0)
