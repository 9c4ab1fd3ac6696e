"""Does pruning make the prefill faster if the cost of the selector is included?

    python benchmarks/bench_prefill.py [--model DIR --selector DIR] [--json FILE]

This runs the latency protocol of `autoselect bench prefill`. Without --selector it times an
untrained one of the default size (or with another number of blocks, --scorer-layers), because the
time does not depend on the weights. The result holds machine, versions and the spread of every
stage.
"""

import argparse
import json
import tempfile
from pathlib import Path

from autoselect.config import GateSite, ScorerConfig
from autoselect.evaluation.latency.bench import bench_prefill
from autoselect.evaluation.latency.protocol import Rounds
from autoselect.files.atomic import write_text
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.resources import resolve_model
from autoselect.vlm import FrozenVLM

RESULTS = Path(__file__).parent / "results" / "prefill.json"


def untrained_selector(model: str, folder: str, site: GateSite, layers: int) -> str:
    width = FrozenVLM.from_pretrained(model).width_at(site)
    scorer = Scorer(width, ScorerConfig(num_layers=layers))
    Selector(scorer, {"model": model}, site=site).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference", help="folder or hub name of the VLM")
    parser.add_argument("--selector", default=None, help="folder or hub name of the selector")
    parser.add_argument("--site", default="after_projector", help="site of the untrained selector")
    parser.add_argument(
        "--scorer-layers",
        type=int,
        default=ScorerConfig.num_layers,
        help="blocks of the Scorer of the untrained selector",
    )
    parser.add_argument("--budgets", default="5.5%,11%,22%,33%", help="comma-separated budgets")
    parser.add_argument("--batches", default="1,8,32", help="comma-separated batch sizes")
    parser.add_argument("--repeats", type=int, default=None, help="samples per stage")
    parser.add_argument("--json", type=Path, default=RESULTS, help="JSON file for the results")
    options = parser.parse_args()
    model = resolve_model(options.model)
    sizes = [int(size) for size in options.batches.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        selector = options.selector or untrained_selector(
            model, folder, options.site, options.scorer_layers
        )
        result = bench_prefill(model, selector, options.budgets, sizes, Rounds(options.repeats))
    write_text(options.json, json.dumps(result, indent=1) + "\n")
    for run in result["runs"]:
        best = max(run["pruned"], key=lambda row: row["speedup"])
        print(
            f"batch {run['batch_size']}: full {run['full_prefill_ms']:.2f} ms, "
            f"{best['budget']} tokens {best['prefill_ms']:.2f} ms (selector "
            f"{best['selector_ms']:.2f}), speedup {best['speedup']:.2f}, with vision encoder "
            f"{best['speedup_with_vision']:.2f}"
        )


if __name__ == "__main__":
    main()
