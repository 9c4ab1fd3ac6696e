"""Ranks of a finished training that tune its selector; rank 1 sees the folder that it is told.

    tune_worker.py FOLDER_OF_RANK_0 FOLDER_OF_RANK_1

Each rank writes how it was called into `called-RANK.json` of the first folder.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from autoselect.tuning import after_training

rank = int(os.environ["RANK"])
folders = sys.argv[1:3]
called = []


def tune(settings, rank, world_size, leave_group):
    called.append([rank, world_size, dist.is_initialized()])


def leave_group():
    dist.barrier()
    dist.destroy_process_group()


after_training.tune = tune
dist.init_process_group("gloo")
after_training.tune_after_training(folders[rank], rank, 2, leave_group)
Path(folders[0], f"called-{rank}.json").write_text(json.dumps(called))
if dist.is_initialized():
    leave_group()
