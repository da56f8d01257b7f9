"""Specs with some of their characters changed: what a parser must survive."""

from __future__ import annotations

import random
from collections.abc import Iterator

PIECES = [*"{}[]<>:,;\"'\\#&*-0\n é\0", "layers", "input", "- ", "a: ", "<<: "]


def mutilated(text: str, count: int, seed: int = 7) -> Iterator[str]:
    """``count`` versions of the text, each with up to eight pieces removed, inserted or repeated."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = list(text)
        for _ in range(rng.randint(1, 8)):
            at, length = rng.randrange(len(changed)), rng.choice((0, 1, 1, 7))
            changed[at : at + length] = rng.choice((rng.choice(PIECES), "", text[at : at + 20]))
        yield "".join(changed)
