"""The benchmarks that can be converted: their official files, and the function that reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoselect.data.benchmarks import (
    gqa,
    mmbench,
    mme,
    mmvet,
    pope,
    scienceqa,
    seedbench,
    textvqa,
    vizwiz,
    vqav2,
)
from autoselect.data.benchmarks.rows import Row


@dataclass(frozen=True)
class Benchmark:
    """One public benchmark.

    Attributes:
        name: end of the command's name, `convert-<name>`.
        summary: help text of the command.
        files: flag name -> official file or folder that it names; `images` is a folder.
        rows: reads the files into one row per image (per question, if multiple choice); raises
            ConfigError if a file is not the official one or has no answers.
        optional: flags that may be left out.
        store_pictures: writes the images that the questions file holds into the folder `images`;
            `--images` then does not exist.
        note: text printed after a conversion.
    """

    name: str
    summary: str
    files: dict[str, str]
    rows: Callable[[Mapping[str, Path]], list[Row]]
    optional: tuple[str, ...] = ()
    store_pictures: Callable[[Mapping[str, Path]], None] | None = None
    note: str = ""


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "vqav2",
            "VQAv2, validation split: ten answers, soft accuracy",
            {
                "questions": "v2_OpenEnded_mscoco_val2014_questions.json",
                "annotations": "v2_mscoco_val2014_annotations.json",
                "images": "folder val2014 of COCO",
            },
            vqav2.rows,
        ),
        Benchmark(
            "gqa",
            "GQA, balanced test-dev split: exact match",
            {"questions": "testdev_balanced_questions.json", "images": "folder images of GQA"},
            gqa.rows,
        ),
        Benchmark(
            "vizwiz",
            "VizWiz-VQA, validation split: ten answers, soft accuracy",
            {"questions": "val.json", "images": "folder val"},
            vizwiz.rows,
        ),
        Benchmark(
            "scienceqa",
            "ScienceQA-IMG, test split: multiple choice",
            {
                "problems": "problems.json",
                "splits": "pid_splits.json",
                "images": "folder images/test, one folder per problem",
            },
            scienceqa.rows,
        ),
        Benchmark(
            "textvqa",
            "TextVQA, validation split: ten answers, soft accuracy",
            {
                "questions": "TextVQA_0.5.1_val.json",
                "ocr": "TextVQA_Rosetta_OCR_v0.2_val.json, to put OCR tokens into the prompts",
                "images": "folder train_images",
            },
            textvqa.rows,
            optional=("ocr",),
        ),
        Benchmark(
            "pope",
            "POPE on COCO: random, popular, adversarial; yes/no",
            {
                "questions": "folder with coco_pope_{random,popular,adversarial}.json",
                "images": "folder val2014 of COCO",
            },
            pope.rows,
        ),
        Benchmark(
            "mme",
            "MME, perception and cognition: yes/no",
            {"images": "folder MME_Benchmark_release_version"},
            mme.rows,
        ),
        Benchmark(
            "mmbench",
            "MMBench, English development split: multiple choice, circular",
            {"questions": "mmbench_dev_20230712.tsv or MMBench_DEV_EN.tsv"},
            mmbench.rows_en,
            store_pictures=mmbench.store_pictures,
        ),
        Benchmark(
            "mmbench-cn",
            "MMBench, Chinese development split: multiple choice, circular",
            {"questions": "mmbench_dev_cn_20231003.tsv or MMBench_DEV_CN.tsv"},
            mmbench.rows_cn,
            store_pictures=mmbench.store_pictures,
        ),
        Benchmark(
            "seedbench",
            "SEED-Bench, questions about images: multiple choice",
            {"questions": "SEED-Bench.json", "images": "folder SEED-Bench-image"},
            seedbench.rows,
        ),
        Benchmark(
            "mmvet",
            "MM-Vet: open questions, graded elsewhere",
            {"questions": "mm-vet.json", "images": "folder images"},
            mmvet.rows,
            note="MM-Vet is graded by a language model on its own server: send it the answers of "
            "predictions.jsonl of `autoselect eval --max-new-tokens 512`. The exact match that it "
            "shows is not an MM-Vet score.",
        ),
    )
}
