"""Settings of an evaluation, and their checks."""

from dataclasses import dataclass

from autoselect.config import require
from autoselect.config.flags import check_counts
from autoselect.config.setting import required, setting
from autoselect.evaluation.asking.choices import ANSWERS, GENERATION, REFERENCES, SCORINGS
from autoselect.evaluation.methods.names import METHOD_NAMES

ONE_SELECTOR = (
    "folder or hub name of the trained selector, or models:/ID or runs:/RUN/selector of the "
    "tracking store"
)
TRANSFORMERS, VLLM = ENGINES = ("transformers", "vllm")
COUNTS = (
    "max_images",
    "random_seeds",
    "images_per_part",
    "rows_per_batch",
    "max_new_tokens",
    "latency_batch",
    "latency_repeats",
)


@dataclass(frozen=True)
class EvalSettings:
    model: str = required("folder or hub name of the vision-language model, or reference")
    selector: str = required(
        f"{ONE_SELECTOR}; several are comma-separated, each optionally as NAME=FOLDER, and become "
        "rows autoselect:NAME of one report"
    )
    shards: str = required(
        "folder or glob of the evaluation shards, a file of LLaVA rows (.json or .jsonl), or "
        "reference"
    )
    budgets: str = required(
        "visual tokens kept: counts, ratios (0.11) or percentages (11%), comma-separated"
    )
    out: str = required("folder for report.json, report.md, the figures and the predictions")
    image_folder: str | None = setting(
        None, "folder of the images that a JSON file names; that of the file by default"
    )
    methods: str = setting(
        "all", f"baselines, comma-separated, of {', '.join(METHOD_NAMES)}; or all, or none"
    )
    max_images: int | None = setting(None, "evaluate only the first images; all by default")
    random_seeds: int = setting(3, "number of seeds of the random baseline")
    images_per_part: int = setting(
        32, "images encoded together; an interrupted evaluation repeats at most so many"
    )
    rows_per_batch: int = setting(32, "questions answered together")
    max_new_tokens: int = setting(16, "longest answer in tokens")
    scoring: str = setting(
        GENERATION,
        "generation; or, if the possible answers are known, likelihood (the likeliest word or "
        "letter) or text_likelihood (the likeliest option text)",
    )
    reference: str = setting(
        ANSWERS,
        "what counts as right: answers, those of the data; or model, the full model's own, so that "
        "accuracy is agreement with it and no labels are needed",
    )
    diversity: str | None = setting(
        None,
        "0..1: how much kept tokens must differ from each other; 0 is the paper's top-K, own the "
        "selector's own setting (default); several, as own,0, give rows of their own",
    )
    audit: int = setting(
        0, "number of samples that lose most likelihood by pruning, to list and draw in the report"
    )
    latency_batch: int = setting(1, "batch size of the latency measurement")
    latency_repeats: int | None = setting(
        None, "measured rounds of the latency measurement; 100 on a GPU, 20 on a CPU by default"
    )
    latency_compiled: bool = setting(
        False, "also time the language model and the selector compiled (CUDA graphs on a GPU)"
    )
    engine: str = setting(
        TRANSFORMERS,
        "what answers for the full model and the selector: transformers, or vllm, which needs "
        "methods=none",
    )
    device: str | None = setting(None, "cpu or cuda; by default a GPU if there is one")
    experiment: str = setting("autoselect", "MLflow experiment")
    tracking: bool = setting(True, "log to MLflow")

    def __post_init__(self) -> None:
        check_counts(**{name: getattr(self, name) for name in COUNTS})
        require(self.audit >= 0, f"audit={self.audit} must be a number of samples, 0 for none")
        require(
            self.scoring in SCORINGS,
            f"scoring={self.scoring!r} is unknown; choose one of {', '.join(SCORINGS)}",
        )
        require(
            self.reference in REFERENCES,
            f"reference={self.reference!r} is unknown; choose one of {', '.join(REFERENCES)}",
        )
        require(
            self.reference == ANSWERS or self.scoring == GENERATION,
            f"scoring={self.scoring} needs the data's answers; use scoring={GENERATION} with "
            f"reference={self.reference}",
        )
        require(
            self.engine in ENGINES,
            f"engine={self.engine!r} is unknown; choose one of {', '.join(ENGINES)}",
        )
        if self.engine == VLLM:
            self._check_served()

    def _check_served(self) -> None:
        """Refuse what a vLLM engine cannot do."""
        from autoselect.evaluation.methods.registry import choose_methods  # imports torch

        baselines = ", ".join(method.name for method in choose_methods(self.methods))
        require(
            not baselines,
            f"methods={self.methods} cannot run in engine={VLLM}, which has selectors only "
            f"({baselines}); use methods=none, or engine={TRANSFORMERS}",
        )
        require(
            self.scoring == GENERATION,
            f"scoring={self.scoring} needs likelihoods, which engine={VLLM} does not give; use "
            f"scoring={GENERATION}, or engine={TRANSFORMERS}",
        )
        require(
            self.audit == 0,
            f"audit={self.audit} needs likelihoods, which engine={VLLM} does not give; use "
            f"audit=0, or engine={TRANSFORMERS}",
        )
