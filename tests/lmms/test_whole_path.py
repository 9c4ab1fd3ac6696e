"""The commands of docs/reproduce.md, from official files and a hub-like folder to the report."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from autoselect import Selector, attach, detach
from tests.data.official_files import picture, pope, put
from tests.launching import call, free_port, train
from tests.lmms.hub_folder import NUM_TOKENS, WIDTH, write_hub_folder

ROOT = Path(__file__).parents[2]
ROWS, STEPS, BUDGET = 40, 3, 4


def write_data(folder: Path) -> None:
    """Write LLaVA-format JSON with images, one row of text only, and POPE."""
    rows = []
    for number in range(ROWS):
        name = f"coco/train2017/{number:012d}.jpg"
        put(folder / "images" / name, picture(number))
        turns = [
            {"from": "human", "value": "<image>\nWhich shade is it?"},
            {"from": "gpt", "value": f"Number {number}."},
            {"from": "human", "value": "Really?"},
            {"from": "gpt", "value": "Yes."},
        ]
        rows.append({"id": str(number), "image": name, "conversations": turns})
    rows[5] = {"id": "text", "conversations": rows[5]["conversations"][2:]}
    put(folder / "llava_v1_5_mix665k.json", rows)
    pope(folder / "pope")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return the folder after shards, doctor, training on two ranks, and evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    write_hub_folder(folder / "model")
    write_data(folder)
    recipe = yaml.safe_load((ROOT / "configs" / "train" / "llava-1.5-7b.yaml").read_text())
    recipe |= {"model": "model", "output": "run", "steps": STEPS, "experiment": "whole"}
    recipe["scorer"] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    recipe["denoiser"] = {"num_layers": 1, "hidden_size": 16}
    recipe["gate"] = {"token_budget": BUDGET, "min_token_budget": 2, "calibration_images": 32}
    recipe["data"] |= {"train_shards": "shards/llava/shard-*.tar", "workers": 0}
    recipe["tune_images"] = 4
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe))
    convert = ["autoselect", "shards"]
    call(
        folder,
        *(*convert, "convert-llava", "llava_v1_5_mix665k.json", "--images", "images"),
        *("--output", "shards/llava", "--samples-per-shard", "16", "--workers", "1"),
    )
    call(
        folder,
        *(*convert, "convert-pope", "--questions", "pope/coco", "--images", "pope/val2014"),
        *("--output", "shards/pope", "--workers", "1"),
    )
    deepspeed = str(ROOT / "configs" / "deepspeed" / "zero2.json")
    doctor = ["autoselect", "doctor", "--config", "run.yaml", "--deepspeed", deepspeed]
    said = call(folder, *doctor, "--gpus", "2", "--gpu", "h100", "--port", free_port())
    assert ": 0 failed" in said
    train(folder, 2, "--deepspeed", deepspeed, "--config", "run.yaml")
    call(
        folder,
        *("autoselect", "eval", "--model", "model", "--selector", "run/selector"),
        *("--shards", "shards/pope/*.tar", "--budgets", f"{BUDGET},{NUM_TOKENS}"),
        *("--methods", "random,divprune", "--latency-repeats", "2", "--out", "eval"),
    )
    return folder


def test_the_folder_is_laid_out_as_on_the_hub(finished):
    names = {path.name for path in (finished / "model").iterdir()}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} <= names
    assert "processor_config.json" in names or "preprocessor_config.json" in names
    assert sum(name.endswith(".safetensors") for name in names) > 2


def test_the_trained_selector_attaches_to_the_stock_model(finished):
    selector = Selector.from_pretrained(finished / "run" / "selector")
    assert (selector.width, selector.metadata["steps"]) == (WIDTH, STEPS)
    model = AutoModelForImageTextToText.from_pretrained(finished / "model").eval()
    processor = AutoProcessor.from_pretrained(finished / "model")
    content = [{"type": "image"}, {"type": "text", "text": "Which shade is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    image = Image.new("RGB", (64, 48), (200, 30, 30))
    inputs = processor(images=image, text=text, return_tensors="pt")
    options = {"max_new_tokens": 6, "do_sample": False}
    stock = model.generate(**inputs, **options)
    attach(model, selector, budget=NUM_TOKENS)
    assert torch.equal(model.generate(**inputs, **options), stock)
    model.autoselect.budget = BUDGET
    pruned = model.generate(**inputs, **options)
    assert len(model.autoselect.last.images[0].kept) == BUDGET
    assert torch.equal(pruned[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    detach(model)
    assert torch.equal(model.generate(**inputs, **options), stock)


def test_the_report_says_full_pruned_and_speed(finished):
    report = json.loads((finished / "eval" / "report.json").read_text())
    assert set(report["full"]["tasks"]) == {"pope"}, "one benchmark, whose mean is that of three"
    for part in ("pope", "pope_random", "pope_popular", "pope_adversarial"):
        assert set(report["full"]["details"][part]) >= {"f1", "yes_ratio"}
    whole = [row for row in report["rows"] if row["budget"] == NUM_TOKENS]
    assert all(row["tasks"] == report["full"]["tasks"] for row in whole)
    assert report["latency"]["pruned"][0]["speedup"] > 0
    assert "digests" in report and report["training"]["steps"] == STEPS


def test_the_selector_carries_its_card(finished):
    card = (finished / "run" / "selector" / "README.md").read_text()
    assert "| budgets in training | 2 to 4 tokens;" in card
    assert str(finished) not in card


def test_lmms_eval_and_the_public_bench_end_the_path(finished):
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip("lmms-eval is not installed: make test-bench")
    local = ["autoselect", "bench", "local-task", "--shards", "shards/pope/*.tar"]
    call(finished, *local, "--name", "local_pope", "--out", "task")
    call(
        finished,
        *("autoselect", "bench", "public", "--model", "model", "--selector", "run/selector"),
        *("--budgets", str(BUDGET), "--tasks", "local_pope", "--include", "task"),
        *("--out", "public", "--no-latency", "--device", "cpu"),
    )
    public = json.loads((finished / "public" / "report.json").read_text())
    own = json.loads((finished / "eval" / "report.json").read_text())
    assert public["full"]["tasks"]["local_pope"] == pytest.approx(100 * own["full"]["mean"])
    rows = {(row["method"], str(row["budget"])): row["mean"] for row in own["rows"]}
    (row,) = public["rows"]
    expected = 100 * rows["autoselect", str(BUDGET)]
    assert row["tasks"]["local_pope"] == pytest.approx(expected)
