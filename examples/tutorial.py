"""From your own pictures to a selector in use, in small: `python examples/tutorial.py`.

It takes the reference VLM and 64 drawn scenes in place of your model and your data, and ten steps
of training in place of thousands, so it ends after a few minutes on two CPU cores. Each step is
what you do with your own; docs/tutorial.md says what to change.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from autoselect import Selector, attach, detach, read_image
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.reference.shards import render_sample

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = (48, 16)
MARK = ".tutorial"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tutorial"))
    out = parser.parse_args().out.resolve()
    if out.exists() and not (out / MARK).exists():
        sys.exit(f"--out {out} exists and is not of this tutorial; give a new folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()

    print("1. Your data: pictures, and a LLaVA file of conversations about them")
    write_own_data(out / "raw", "train", 64)
    write_own_data(out / "raw", "test", 8)

    print("2. Shards: one call of the converter for each split")
    for split in ("train", "test"):
        source, shards = out / "raw" / f"{split}.json", out / "shards" / split
        run("shards", "convert-llava", source, "--images", out / "raw", "--output", shards)

    print("3. Ten training steps; real runs take thousands")
    settings = ["--output", out / "run", "--steps", 10, "--tracking=false", "--tune_images=0"]
    settings += ["--model", MODEL_FOLDER, "--data.train_shards", out / "shards/train/*.tar"]
    settings += ["--data.workers", 1, "--gate.calibration_images", 32]
    run("train", "--ranks", 1, "--deepspeed", ROOT / "configs/deepspeed/zero2.json", *settings)

    print("4. Attach, and change the budget from call to call")
    vlm = AutoModelForImageTextToText.from_pretrained(MODEL_FOLDER)
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    picture, question = out / "raw" / "test-0000000.jpg", "what does the sign say ?"
    inputs = processor(
        images=[read_image(picture)], text=[prompt(processor, question)], return_tensors="pt"
    )
    print(f"   {question} all tokens: {answer(vlm, processor, inputs)!r}")
    model = attach(vlm, Selector.from_pretrained(out / "run" / "selector"), budget=BUDGETS[0])
    for budget in BUDGETS:
        reply = answer(model, processor, inputs, visual_token_budget=budget)
        print(f"   {budget} tokens: {reply!r}")
        assert len(model.autoselect.last.images[0].kept) == budget

    print("5. A picture of what was kept")
    model.autoselect.overlay(read_image(picture)).save(out / "overlay.png")
    print(f"   {out / 'overlay.png'}")
    detach(model)

    print("6. Compare with a baseline on the test pictures")
    flags = ["--model", MODEL_FOLDER, "--selector", out / "run/selector", "--no-tracking"]
    flags += ["--shards", out / "shards/test/*.tar", "--budgets", ",".join(map(str, BUDGETS))]
    run("eval", *flags, "--methods", "grid", "--max-new-tokens", 4, "--out", out / "eval")


def write_own_data(folder: Path, split: str, count: int) -> None:
    """Write JPEG files and `SPLIT.json`: one row with `id`, `image` and `conversations` each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        key, record, jpeg = render_sample(7, split, index)
        (folder / f"{key}.jpg").write_bytes(jpeg)
        rows.append({"id": key, "image": f"{key}.jpg", "conversations": record["conversations"]})
    (folder / f"{split}.json").write_text(json.dumps(rows))


def run(*words: object) -> None:
    """Run an `autoselect` command of this Python; stop if it fails."""
    command = [sys.executable, "-m", "autoselect.cli", *map(str, words)]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT)


def prompt(processor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


@torch.inference_mode()
def answer(model, processor, inputs, **options) -> str:
    length = inputs["input_ids"].shape[1]
    produced = model.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
    return processor.tokenizer.decode(produced[0, length:], skip_special_tokens=True).strip()


if __name__ == "__main__":
    main()
