"""Tiny benchmarks in the official file formats, made on the spot."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 14), (number * 40 % 256, 90, 200)).save(stream, "JPEG")
    return stream.getvalue()


def put(path: Path, content: Any) -> Path:
    """Write bytes, text or a JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def ten(*groups: tuple[str, int]) -> list[dict[str, Any]]:
    """Annotators' answers as VQAv2 and VizWiz list them."""
    answers = [text for text, count in groups for _ in range(count)]
    assert len(answers) == 10
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": number + 1}
        for number, text in enumerate(answers)
    ]


def vqav2(root: Path) -> dict[str, Path]:
    """Three questions about two images."""
    for number in (42, 7):
        put(root / "val2014" / f"COCO_val2014_{number:012d}.jpg", picture(number))
    asked = [(42000, 42, "Where is he?"), (7000, 7, "What is it?"), (42001, 42, "Is it red?")]
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text in asked]
    given = {
        42000: ten(("down", 9), ("at table", 1)),
        7000: ten(("two dogs", 2), ("dog", 8)),
        42001: ten(("yes", 10)),
    }
    annotations = [
        {
            "question_id": q,
            "image_id": i,
            "answers": given[q],
            "multiple_choice_answer": given[q][-1]["answer"] if q == 7000 else "down",
            "answer_type": "other",
            "question_type": "what",
        }
        for q, i, _ in asked
    ]
    return {
        "questions": put(root / "q.json", {"data_subtype": "val2014", "questions": questions}),
        "annotations": put(
            root / "a.json", {"data_subtype": "val2014", "annotations": annotations}
        ),
        "images": root / "val2014",
    }


def gqa(root: Path) -> dict[str, Path]:
    """Write two questions about one image."""
    put(root / "images" / "n161313.jpg", picture(1))
    questions = {
        "201307251": {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
            "entailed": ["201307245"],
            "equivalent": ["201307251"],
            "question": "Is it overcast?",
            "imageId": "n161313",
            "isBalanced": True,
            "groups": {"global": None, "local": "13-sky"},
            "answer": "no",
            "fullAnswer": "No, it is clear.",
        },
        "201640614": {
            "question": "Who is wearing the dress?",
            "imageId": "n161313",
            "answer": "woman",
            "fullAnswer": "The woman is wearing a dress.",
        },
    }
    return {"questions": put(root / "testdev.json", questions), "images": root / "images"}


def vizwiz(root: Path) -> dict[str, Path]:
    """Write one question, its first answer left empty by the annotator."""
    put(root / "val" / "VizWiz_val_00000000.jpg", picture(2))
    entry = {
        "image": "VizWiz_val_00000000.jpg",
        "question": "Ok. There is another picture I hope it is a better one.",
        "answers": ten(("", 1), ("unanswerable", 7), ("blurry", 2)),
        "answer_type": "unanswerable",
        "answerable": 0,
    }
    return {"questions": put(root / "val.json", [entry]), "images": root / "val"}


def textvqa(root: Path) -> dict[str, Path]:
    """Write one question, with OCR tokens."""
    put(root / "train_images" / "003a8ae2ef43b901.jpg", picture(3))
    entry = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "question_id": 34602,
        "image_classes": ["Cassette deck"],
        "answers": ["nous les gosses"] + ["dakota"] * 7 + ["clos culombu", "dakota digital"],
        "set_name": "val",
    }
    tokens = {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL"]}
    return {
        "questions": put(root / "val.json", {"dataset_type": "val", "data": [entry]}),
        "ocr": put(root / "ocr.json", {"data": [tokens]}),
        "images": root / "train_images",
    }


def scienceqa(root: Path) -> dict[str, Path]:
    """Three problems: with an image, without one, and of another split."""
    put(root / "test" / "11" / "image.png", picture(4))
    problem = {
        "question": "What is the capital of Wyoming?",
        "choices": ["Phoenix", "Baton Rouge", "Honolulu", "Cheyenne"],
        "answer": 3,
        "hint": "Look at\nthe map.",
        "image": "image.png",
        "split": "test",
    }
    problems = {
        "11": problem,
        "12": problem | {"image": None, "hint": ""},
        "13": problem | {"split": "train"},
    }
    return {
        "problems": put(root / "problems.json", problems),
        "splits": put(root / "pid_splits.json", {"train": ["13"], "test": ["11", "12"]}),
        "images": root / "test",
    }


def pope(root: Path) -> dict[str, Path]:
    """Write two questions per category, all about one image."""
    put(root / "val2014" / "COCO_val2014_000000310196.jpg", picture(5))
    for category in ("random", "popular", "adversarial"):
        lines = [
            {
                "question_id": number,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for number, thing, label in ((1, "snowboard", "yes"), (2, category, "no"))
        ]
        text = "\n".join(json.dumps(line) for line in lines) + "\n"
        put(root / "coco" / f"coco_pope_{category}.json", text)
    return {"questions": root / "coco", "images": root / "val2014"}


MME_SUBTASKS = (
    "existence count position color posters celebrity scene landmark artwork OCR "
    "commonsense_reasoning numerical_calculation text_translation code_reasoning"
).split()


def mme(root: Path) -> dict[str, Path]:
    """Write two images per subtask; `posters` in the layout with two folders."""
    for subtask in MME_SUBTASKS:
        images = texts = root / subtask
        if subtask == "posters":
            images, texts = root / subtask / "images", root / subtask / "questions_answers_YN"
        for number in (1, 2):
            put(images / f"{number:06d}.jpg", picture(number))
            lines = (
                f"Is this {subtask}? Please answer yes or no.\tYes\n"
                f"Is this a cat? Please answer yes or no.\tNo\n"
            )
            put(texts / f"{number:06d}.txt", lines)
    return {"images": root}


MMBENCH_HEAD = "index question hint A B C D answer category image source l2-category split".split()


def mmbench(root: Path, rotated: bool = False) -> dict[str, Path]:
    """Write two questions; with `rotated`, the second one comes again with turned options."""
    image = base64.b64encode(picture(6)).decode()
    rows = [
        {
            "index": "241",
            "question": "Which one shows a dog?",
            "hint": "nan",
            "A": "left",
            "B": "right",
            "C": "",
            "D": "",
            "answer": "B",
            "image": image,
        },
        {
            "index": "252",
            "question": "What is it?",
            "hint": "The passage.",
            "A": "cat",
            "B": "dog",
            "C": "cow",
            "D": "",
            "answer": "C",
            "image": image,
        },
    ]
    if rotated:
        turned = {"index": "1000252", "A": "dog", "B": "cow", "C": "cat", "answer": "B"}
        rows.append(rows[1] | turned | {"image": "252"})
    lines = ["\t".join(MMBENCH_HEAD)]
    lines += ["\t".join(str(row.get(name, "dev")) for name in MMBENCH_HEAD) for row in rows]
    return {"questions": put(root / "mmbench.tsv", "\n".join(lines) + "\n")}


def seedbench(root: Path) -> dict[str, Path]:
    """Write one question about an image (whose file has no suffix), one about a video."""
    put(root / "SEED-Bench-image" / "1454426_2591111986", picture(7))
    about_image = {
        "answer": "A",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": "1454426_2591111986",
        "data_type": "image",
        "question": "How many towels are in the image?",
        "question_id": "101669",
        "question_type_id": 5,
    }
    about_video = about_image | {"data_type": "video", "data_id": "v.mp4", "question_id": "1"}
    value = {"question_type": {"Instances Counting": 5}, "questions": [about_image, about_video]}
    return {
        "questions": put(root / "SEED-Bench.json", value),
        "images": root / "SEED-Bench-image",
    }


def mmvet(root: Path) -> dict[str, Path]:
    """Write one question."""
    put(root / "images" / "v1_0.png", picture(8))
    entry = {
        "imagename": "v1_0.png",
        "imagesource": "https://example.org/x.png",
        "question": "What is x in the equation?",
        "answer": "-1<AND>-5",
        "capability": ["ocr", "math"],
    }
    return {"questions": put(root / "mm-vet.json", {"v1_0": entry}), "images": root / "images"}


MAKERS = {
    "vqav2": vqav2,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "scienceqa": scienceqa,
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench,
    "mmbench-cn": mmbench,
    "seedbench": seedbench,
    "mmvet": mmvet,
}
