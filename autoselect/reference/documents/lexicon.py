"""The words of pages and questions; numbers, codes and other values are drawn at random."""

import numpy as np

GOODS = (
    "tea milk bread rice eggs soup cake apple lemon honey salt beans fish corn pasta juice sugar "
    "onion plum nuts"
).split()
FIRST_NAMES = "anna ben carl dora emil fay gus hana ivan kate".split()
SURNAMES = "lee kim novak silva costa roy berg diaz moore wolf".split()
CITIES = "paris rome oslo lima delhi cairo tokyo quito bern riga".split()
PLACES = "exit bank hotel beach museum park zoo mall port taxi".split()
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
DAYS = "mon tue wed thu fri sat sun".split()
SHOP_FIRST = "sunny royal lucky old big happy".split()
SHOP_SECOND = "cafe shop deli diner store kiosk".split()
KEYS = "name date city room code age seat gate time price".split()
DIRECTIONS = ("left", "right", "up", "down")
TEXT_COLOURS = {
    "red": (200, 20, 20),
    "green": (10, 130, 40),
    "blue": (30, 50, 210),
    "black": (10, 10, 10),
    "orange": (230, 120, 0),
    "purple": (130, 30, 160),
}
NOISE_WORDS = "paid copy page draft note info sale open memo file".split()
PRINTED = tuple(
    dict.fromkeys(
        [*GOODS, *FIRST_NAMES, *SURNAMES, *CITIES, *PLACES, *MONTHS, *DAYS]
        + [*SHOP_FIRST, *SHOP_SECOND, *KEYS, "total", "km", *NOISE_WORDS]
    )
)
CODE_LETTERS = "ABCDEFHJKLMNPRTUVXYZ"
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:/%"


def pick(rng: np.random.Generator, items: list[str] | tuple[str, ...], count: int) -> list[str]:
    """Draw `count` different items, in random order."""
    return [items[int(i)] for i in rng.permutation(len(items))[:count]]


def one(rng: np.random.Generator, items: list[str] | tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def price(rng: np.random.Generator) -> int:
    """Draw a price of three digits, in cents."""
    return int(rng.integers(100, 1000))


def money(cents: int) -> str:
    """Format a price in cents: 470 becomes `4.70`."""
    return f"{cents // 100}.{cents % 100:02d}"


def code(rng: np.random.Generator) -> str:
    """Draw a code of four letters and digits."""
    letters = [CODE_LETTERS[int(i)] for i in rng.integers(len(CODE_LETTERS), size=4)]
    digits = [str(int(i)) for i in rng.integers(10, size=4)]
    return "".join(
        letter if is_letter else digit
        for letter, digit, is_letter in zip(letters, digits, rng.random(4) < 0.5, strict=True)
    )


def value_of(rng: np.random.Generator, key: str) -> str:
    """Draw a value for a form field; codes, seats and gates have capitals."""
    letter = CODE_LETTERS[int(rng.integers(len(CODE_LETTERS)))]
    number = rng.integers
    makers = {
        "name": lambda: f"{one(rng, FIRST_NAMES)} {one(rng, SURNAMES)}",
        "date": lambda: f"{number(10, 29)}/{number(10, 13)}",
        "city": lambda: one(rng, CITIES),
        "room": lambda: str(number(100, 1000)),
        "code": lambda: code(rng),
        "age": lambda: str(number(10, 100)),
        "seat": lambda: f"{number(10, 50)}{letter}",
        "gate": lambda: f"{letter}{number(1, 10)}",
        "time": lambda: f"{number(10, 24)}:{number(10, 60)}",
        "price": lambda: money(price(rng)),
    }
    return makers[key]()
