"""`autoselect show`: ask a model about a photo, with all visual tokens and with fewer.

    autoselect show street.jpg --question "What does the sign say?" --budgets 64,32 \
        --model llava-hf/llava-1.5-7b-hf --selector runs/llava-1.5-7b/train/selector

Without a photo it takes a test scene of the reference VLM, with that scene's own question.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoselect.cli.demo import RUN
from autoselect.cli.photos import QUESTION, Picture, find_pictures
from autoselect.config import ConfigError
from autoselect.config.flags import check_counts
from autoselect.files.atomic import write_text
from autoselect.reference.resources import MODEL_FOLDER, REFERENCE, resolve_model

if TYPE_CHECKING:
    from autoselect.cli.show_answers import Shown

DEMO_SELECTOR = str(RUN / "train" / "selector")


def add_show_command(subparsers: Any) -> None:
    show = subparsers.add_parser(
        "show", help="ask about a photo with all and with fewer visual tokens"
    )
    show.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO",
        help="pictures, or folders of pictures; by default a scene of the reference test data",
    )
    show.add_argument("--question", help=f"default: the scene's own, or {QUESTION!r} on a photo")
    show.add_argument(
        "--budgets",
        default="16,32",
        help="visual tokens kept: counts, ratios (0.11) or percentages (11%%), comma-separated",
    )
    show.add_argument("--model", default=REFERENCE, help="folder or hub name of the VLM")
    show.add_argument("--selector", default=DEMO_SELECTOR, help="folder or hub name")
    show.add_argument("--out", default="runs/show", help="folder of the overlay pictures")
    show.add_argument("--max-new-tokens", type=int, default=32, help="longest answer in tokens")
    show.add_argument("--scene", type=int, help="number of the test scene, from 0 (default 0)")
    show.add_argument("--device", help="cpu or cuda; by default a GPU if there is one")
    show.add_argument("--json", metavar="FILE", help="also write answers, times and kept positions")
    show.set_defaults(run=run_show)


def run_show(arguments: argparse.Namespace) -> int:
    check_counts(max_new_tokens=arguments.max_new_tokens)
    pictures = find_pictures(arguments.photos, arguments.question, arguments.scene)
    if arguments.selector == DEMO_SELECTOR and not Path(DEMO_SELECTOR).is_dir():
        raise ConfigError(
            f"selector={DEMO_SELECTOR} does not exist; run `make demo` first, or name another one "
            "with --selector"
        )
    from autoselect.cli.show_answers import ask, count_tokens, draw, inputs_of
    from autoselect.evaluation.loading import load_pair
    from autoselect.pruning.budget import parse_budgets

    name = resolve_model(arguments.model)
    vlm, selector = load_pair(name, arguments.selector, arguments.device)
    if arguments.photos and Path(name).resolve() == MODEL_FOLDER.resolve():
        print(
            "note: the reference VLM knows only its own drawn scenes, so its answers about a photo "
            "mean nothing; name a VLM with --model"
        )
    results = []
    for picture in pictures:
        inputs = inputs_of(vlm, picture)
        budgets = parse_budgets(arguments.budgets, count_tokens(vlm, inputs))
        shown = ask(vlm, selector, inputs, budgets, arguments.max_new_tokens)
        overlay, reason = draw(vlm, picture, shown, Path(arguments.out))
        print_answers(picture, shown, overlay, reason)
        results.append(as_json(picture, shown, overlay))
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(results, indent=2) + "\n")
    return 0


def print_answers(
    picture: Picture, shown: list["Shown"], overlay: Path | None, reason: str
) -> None:
    from autoselect.cli.show_answers import label

    full = shown[0]
    size = f"{picture.image.width} x {picture.image.height} pixels"
    print(f"\n{picture.name}: {size}, {full.tokens} visual tokens")
    print(f"question  {picture.question}\n")
    width = max(len("answer"), *(len(s.answer) for s in shown))
    print(f"  {'visual tokens':<16}{'answer':<{width + 3}}{'time':>9}   speedup")
    for s in shown:
        faster = f"{full.milliseconds / s.milliseconds:.2f}x"
        print(
            f"  {label(s, full.tokens):<16}{s.answer:<{width + 3}}{s.milliseconds:>6.1f} ms   "
            f"{faster}"
        )
    print(f"\noverlay   {overlay or f'none: {reason}'}")


def as_json(picture: Picture, shown: list["Shown"], overlay: Path | None) -> dict[str, Any]:
    return {
        "picture": picture.name,
        "question": picture.question,
        "overlay": str(overlay) if overlay else None,
        "answers": [
            {
                "tokens": s.tokens,
                "answer": s.answer,
                "milliseconds": round(s.milliseconds, 3),
                "kept": s.kept,
            }
            for s in shown
        ],
    }
