"""Normalise answers as the official VQA evaluation does (Antol et al. 2015, GT-Vision-Lab/VQA).

Its peculiarities are kept, because published numbers contain them: a hyphen becomes a space unless
the text has one beside it; the test for a full stop after a digit is written `(?!<=\\d)`, which is
always true, so every full stop that is not followed by a digit is removed.
"""

import re

ARTICLES = {"a", "an", "the"}
NUMBERS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
DIGIT_COMMA = re.compile(r"(\d)(,)(\d)")
CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am "
    "mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at "
    "shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's "
    "someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all "
    "y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {damaged: word for word in CONTRACTED for damaged in _without_one_apostrophe(word)}


def strip_punctuation(text: str) -> str:
    """Remove punctuation beside a space and full stops; replace the rest by spaces."""
    result = text
    has_digit_comma = DIGIT_COMMA.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or has_digit_comma else " ")
    return FULL_STOP.sub("", result)


def normalise_vqa_answer(text: str) -> str:
    """Lower case, drop punctuation and articles, write digits, restore apostrophes."""
    flat = text.replace("\n", " ").replace("\t", " ").strip()
    words = [NUMBERS.get(w, w) for w in strip_punctuation(flat).lower().split()]
    return " ".join(CONTRACTIONS.get(w, w) for w in words if w not in ARTICLES)
