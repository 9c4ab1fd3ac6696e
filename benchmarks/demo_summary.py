"""Keep of a finished demo what the README says about it.

python benchmarks/demo_summary.py --report runs/demo/report.json --cpu-seconds 900
"""

import argparse
import json
from pathlib import Path

from autoselect.files.atomic import write_text

RESULT = Path(__file__).parent / "results" / "demo.json"
KEPT = ("method", "budget", "retention", "retention_ci95")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, required=True, help="report.json of the demo")
    parser.add_argument(
        "--cpu-seconds",
        type=float,
        required=True,
        help="user and system time of all its processes, as `time make demo` prints them",
    )
    options = parser.parse_args()
    report = json.loads(options.report.read_text())
    summary = {
        "num_tokens": report["num_tokens"],
        "images": report["images"],
        "questions": report["questions"],
        "cpu_seconds": options.cpu_seconds,
        "rows": [{name: row[name] for name in KEPT} for row in report["rows"]],
        "environment": report["environment"],
    }
    write_text(RESULT, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
