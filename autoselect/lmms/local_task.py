"""Turn evaluation shards into a task of lmms-eval, to compare its scores with `autoselect eval`.

The folder holds `NAME.yaml`, the questions as JSON lines, and the images. Run it with
`--include_path FOLDER --tasks NAME`. Every task of the shards becomes one metric.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from autoselect.config.flags import check_counts
from autoselect.data.decode import Limits, image_suffix, read_image
from autoselect.evaluation.samples import EvaluationSet, parse_record
from autoselect.evaluation.scores.scoring import question_score
from autoselect.evaluation.settings import EvalSettings
from autoselect.files.atomic import write_bytes, write_text

FUNCTIONS = "from autoselect.lmms.local_task import process_results, text, visual  # noqa: F401\n"


def write_local_task(
    name: str, shards: str, folder: Path, max_new_tokens: int = EvalSettings.max_new_tokens
) -> None:
    """Write the folder of the task.

    Raises:
        ConfigError: the shards cannot be evaluated, or answers would have no token.
    """
    check_counts(max_new_tokens=max_new_tokens)
    documents = list(_documents(EvaluationSet.open(shards), folder / "images"))
    data = folder / f"{name}.jsonl"
    write_text(data, "".join(json.dumps(one) + "\n" for one in documents))
    write_text(folder / "utils.py", FUNCTIONS)
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "answers",
        "generation_kwargs": {"max_new_tokens": max_new_tokens, "do_sample": False},
        "metric_list": [
            {"metric": task, "aggregation": "mean", "higher_is_better": True}
            for task in sorted({one["task"] for one in documents})
        ],
        "metadata": [{"version": 1.0}],
    }
    functions = {
        "doc_to_visual": "utils.visual",
        "doc_to_text": "utils.text",
        "process_results": "utils.process_results",
    }
    written = yaml.safe_dump(settings, sort_keys=False)
    written += "".join(f"{field}: !function {home}\n" for field, home in functions.items())
    write_text(folder / f"{name}.yaml", written)


def _documents(samples: EvaluationSet, pictures: Path) -> Iterator[dict[str, Any]]:
    """Yield every question as lmms-eval reads it, and write its images."""
    pictures.mkdir(parents=True, exist_ok=True)
    for number in range(len(samples)):
        sample = samples.read(number)
        paths = []
        for place, encoded in enumerate(sample.images):
            part = f"-{place}" if place else ""
            picture = pictures / f"{number:06d}{part}.{image_suffix(encoded)}"
            write_bytes(picture, encoded)
            paths.append(str(picture.resolve()))
        asked = parse_record(sample.record, sample.key)
        # The marks among several images say where they go.
        questions = asked.marked if len(paths) > 1 else asked.questions
        for question, accepted, task in zip(questions, asked.answers, asked.tasks, strict=True):
            yield {
                "image_path": paths,
                "question": question,
                "answers": list(accepted),
                "task": task,
            }


def visual(document: Mapping[str, Any]) -> list[Image.Image]:
    """Return the images of a question as AutoSelect evaluates them."""
    paths = document["image_path"]
    # Evaluation shards are read within their own caps before the task is written.
    read = Limits(sys.maxsize, sys.maxsize)
    return [read_image(path, read) for path in ([paths] if isinstance(paths, str) else paths)]


def text(document: Mapping[str, Any], specific: Mapping[str, Any] | None = None) -> str:
    return document["question"]


def process_results(document: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Score one answer like `autoselect eval`, under the name of its task."""
    answers = list(document["answers"])
    score = question_score(document["task"], document["question"], answers)
    return {document["task"]: score(results[0], answers)}
