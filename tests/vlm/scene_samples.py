"""Samples with a rendered scene."""

from dataclasses import dataclass

from autoselect.reference.scenes import make_scene


@dataclass
class FakeSample:
    key: str
    sample_id: int
    record: dict
    pictures: tuple
    shard: str = "a.tar"
    offset: int = 512


def sample(number: int, rounds: list[tuple[str, str]], image: bool = True) -> FakeSample:
    turns = []
    for question, answer in rounds:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    pictures = (make_scene(0, "train", number).image,) if image else ()
    return FakeSample(f"s{number}", number, {"conversations": turns}, pictures)


ROUNDS = [("is there a red star ?", "no"), ("what does the sign say ?", "K7")]
