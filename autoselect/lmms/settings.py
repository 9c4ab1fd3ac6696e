"""Settings of public benchmarks."""

from dataclasses import dataclass

from autoselect.config.flags import check_counts
from autoselect.config.row_names import SELECTOR
from autoselect.config.setting import required, setting
from autoselect.evaluation.methods.names import METHOD_NAMES, ORACLES
from autoselect.lmms.tasks import TEN

BASELINES = tuple(name for name in METHOD_NAMES if name not in ORACLES)
"""Methods that public tasks are run with: those that need nothing but images and questions."""


@dataclass(frozen=True)
class PublicSettings:
    model: str = required("folder or hub name of the vision-language model, or reference")
    selector: str = required("folder or hub name of the trained selector")
    budgets: str = required(
        "visual tokens kept: counts, ratios (0.11) or percentages (11%), comma-separated"
    )
    out: str = required("folder for report.json, report.md and the finished cells")
    tasks: str = setting(",".join(TEN), "tasks of lmms-eval, comma-separated")
    methods: str = setting(
        SELECTOR, f"{SELECTOR} and baselines ({', '.join(BASELINES)}), comma-separated"
    )
    batch_size: int = setting(8, "questions answered together")
    include: str | None = setting(None, "folder with further tasks of lmms-eval")
    limit: int | None = setting(
        None, "only the first questions of every task, to try it out; all by default"
    )
    launcher: str | None = setting(
        None, "words before -m lmms_eval, such as 'accelerate launch --num_processes 8'"
    )
    device: str | None = setting(None, "cpu or cuda; by default a GPU if there is one")
    latency: bool = setting(True, "also measure prefill latency")
    experiment: str = setting("autoselect-public", "MLflow experiment")
    tracking: bool = setting(True, "log to MLflow")

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, limit=self.limit)
