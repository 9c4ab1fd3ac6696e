"""Ask five families of questions about a reference scene; each mirrors a public benchmark.

| family    | mirrors | answers                     |
|-----------|---------|-----------------------------|
| existence | POPE    | yes, no                     |
| attribute | VQAv2   | a colour or a shape         |
| counting  | MME     | 0 to 5                      |
| relation  | GQA     | left, right, above, below   |
| text      | TextVQA | the two characters          |

The answer is drawn first and the question is made to fit it. Answers are therefore hard to guess
without the image; the blind accuracy measures what can still be guessed.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from autoselect.reference.scenes import COLOURS, SHAPES, Scene, SceneObject

FAMILIES = ("existence", "attribute", "counting", "relation", "text")
QUESTIONS_PER_IMAGE = 8
FAMILY_MIX = (
    "existence",
    "relation",
    "counting",
    "attribute",
    "text",
    "relation",
    "counting",
    "existence",
    "attribute",
    "attribute",
    "relation",
)


@dataclass(frozen=True)
class Question:
    """One question and its answer; `boxes` are the image regions it is about, pixels."""

    family: str
    question: str
    answer: str
    boxes: tuple[tuple[int, int, int, int], ...]


def _pick(rng: np.random.Generator, items: list):
    return items[int(rng.integers(len(items)))]


def existence(rng: np.random.Generator, scene: Scene) -> Question:
    """Ask if an object exists, with yes and no equally often.

    Half of the absent objects combine a colour and a shape that are both present.
    """
    present = {(o.colour, o.shape) for o in scene.objects}
    if rng.random() < 0.5:
        item = _pick(rng, list(scene.objects))
        colour, shape, answer = item.colour, item.shape, "yes"
        boxes = tuple(o.box for o in scene.objects if (o.colour, o.shape) == (colour, shape))
    else:
        everything = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
        near = [
            (c, s)
            for c, s in everything
            if any(c == o.colour for o in scene.objects)
            and any(s == o.shape for o in scene.objects)
        ]
        colour, shape = _pick(rng, near if near and rng.random() < 0.5 else everything)
        answer, boxes = "no", tuple(o.box for o in scene.objects)
    return Question("existence", f"is there a {colour} {shape} ?", answer, boxes)


def attribute(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the colour of the only object of a shape, or the shape of the only one of a colour.

    Returns None if no object is unique.
    """
    colours = Counter(o.colour for o in scene.objects)
    shapes = Counter(o.shape for o in scene.objects)
    by_shape = [o for o in scene.objects if shapes[o.shape] == 1]
    by_colour = [o for o in scene.objects if colours[o.colour] == 1]
    if by_shape and (not by_colour or rng.random() < 0.5):
        item = _pick(rng, by_shape)
        return Question("attribute", f"what color is the {item.shape} ?", item.colour, (item.box,))
    if by_colour:
        item = _pick(rng, by_colour)
        question = f"what shape is the {item.colour} object ?"
        return Question("attribute", question, item.shape, (item.box,))
    return None


def counting(rng: np.random.Generator, scene: Scene) -> Question:
    if rng.random() < 0.2:
        boxes = tuple(o.box for o in scene.objects)
        return Question("counting", "how many objects are there ?", str(len(boxes)), boxes)
    groups: dict[str, tuple[SceneObject, ...]] = {}
    for colour in COLOURS:
        groups[f"{colour} objects"] = tuple(o for o in scene.objects if o.colour == colour)
    for shape in SHAPES:
        groups[f"{shape}s"] = tuple(o for o in scene.objects if o.shape == shape)
    counts = sorted({len(members) for members in groups.values()})
    count = _pick(rng, counts)
    noun = _pick(rng, [n for n, members in groups.items() if len(members) == count])
    boxes = tuple(o.box for o in groups[noun]) or tuple(o.box for o in scene.objects)
    return Question("counting", f"how many {noun} are there ?", str(count), boxes)


def _name(item: SceneObject) -> str:
    return f"{item.colour} {item.shape}"


def relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask where an object is relative to another object or the plate; None if no pair is clear."""
    names = Counter(_name(o) for o in scene.objects)
    single = [o for o in scene.objects if names[_name(o)] == 1]
    sign = SceneObject("sign", "", scene.plate.box)
    pairs = [(a, b) for a in single for b in [*single, sign] if a is not b]
    order = [int(i) for i in rng.permutation(len(pairs))]
    horizontal = rng.random() < 0.5
    for i in order:
        first, second = pairs[i]
        axis = 0 if horizontal else 1
        gap = first.centre[axis] - second.centre[axis]
        if abs(gap) < 12:
            continue
        words = ("left", "right") if horizontal else ("above", "below")
        other = "sign" if second is sign else _name(second)
        joiner = f"{words[0]} or {words[1]} of" if horizontal else "above or below"
        return Question(
            "relation",
            f"is the {_name(first)} {joiner} the {other} ?",
            words[int(gap > 0)],
            (first.box, second.box),
        )
    return None


def text(rng: np.random.Generator, scene: Scene) -> Question:
    return Question(
        "text", "what does the sign say ?", scene.plate.text, scene.plate.character_boxes
    )


MAKERS = {
    "existence": existence,
    "attribute": attribute,
    "counting": counting,
    "relation": relation,
    "text": text,
}


def ask(rng: np.random.Generator, scene: Scene, families: tuple[str, ...]) -> list[Question]:
    """Ask one question for each entry of `families`, all different.

    Families that cannot ask about this scene are left out.
    """
    asked: dict[str, Question] = {}
    for family in families:
        for _ in range(4):
            question = MAKERS[family](rng, scene)
            if question is not None and question.question not in asked:
                asked[question.question] = question
                break
    return list(asked.values())


def caption(scene: Scene) -> Question:
    """Ask for everything in the scene: its objects from left to right, then the sign.

    The reference VLM was never trained to answer this; it knows each word.
    """
    ordered = sorted(scene.objects, key=lambda item: item.box)
    words = " , ".join(f"a {item.colour} {item.shape}" for item in ordered)
    boxes = (*(item.box for item in ordered), *scene.plate.character_boxes)
    answer = f"{words} and the sign {scene.plate.text}"
    return Question("caption", "what objects are there ?", answer, boxes)
