"""The equations of docstrings as mathematics: from the plain notation of source code to TeX.

``c_i = -1/N (margin - d_i)/d_i`` reads well in a file, and a page shows it as a formula. Single letters
are variables, words are names, ``_i`` an index, ``^2`` an exponent, ``x'`` primed, ``|x|`` a length;
words in a row that say something are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

GREEK = {"alpha", "beta", "gamma", "sigma", "theta"}
FUNCTIONS = {"max", "min", "cos", "log", "exp"}
SYMBOLS = {"<-": r"\leftarrow", "<=": r"\le", ">=": r"\ge", "*": r"\cdot", ".": r"\cdot"}
TOKEN = re.compile(
    r"(?P<gap> {2,})|(?P<word>[A-Za-z][A-Za-z0-9]*)|\d+(?:\.\d+)?|(?P<arrow><-|<=|>=)|(?P<other>.)"
)
WORDS = re.compile(r"\(Eqs?\.[^)]*\)|[A-Za-z]{2,}(?: [A-Za-z]{2,})*")
PROSE = {
    *(
        "after",
        "and",
        "as",
        "ascending",
        "at",
        "bilinearly",
        "down",
        "else",
        "for",
        "if",
        "in",
        "instead",
    ),
    *("likewise", "of", "one", "or", "other", "outside", "over", "read", "rounded", "the", "to"),
    *("towards", "where"),
}


def tex(equation: str) -> str:
    """Lines of plain equations as lines of TeX, one below the other."""
    lines = [_line(line.strip().removesuffix(".")) for line in equation.strip("\n").split("\n")]
    return "\\begin{gathered}\n" + " \\\\\n".join(lines) + "\n\\end{gathered}"


def _line(text: str) -> str:
    """Words in a row of which one belongs to no formula are text."""
    found, start = [], 0
    for words in WORDS.finditer(text):
        first, last = _span(words[0])
        if first < last:
            found.append(_formula(text[start : words.start() + first]))
            found.append(rf"\text{{ {words[0][first:last].strip()} }}")
            start = words.start() + last
    return "".join([*found, _formula(text[start:])]).strip()


def _span(words: str) -> tuple[int, int]:
    """Where the text among words begins and ends: without a name before it and a function after it."""
    if words.startswith("("):
        return 0, len(words)
    row = words.split(" ")
    prose = [i for i, word in enumerate(row) if word in PROSE]
    if not prose:
        return 0, 0
    alone = prose[0] == 1 and row[1] not in ("of", "over", "in")
    first = len(row[0]) + 1 if alone else 0
    last = len(words) - (len(row[-1]) if row[-1] in FUNCTIONS else 0)
    return first, last


def _formula(text: str) -> str:
    return "".join(_tokens(text))


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        found = TOKEN.match(text, position)
        assert found
        position = found.end()
        if found["gap"]:
            yield r" \quad "
        elif word := found["word"]:
            name, position = _name(word, text, position)
            yield name
        elif found[0] in ("^", "_"):
            inner, position = _group(text, position)
            yield f"{found[0]}{{{inner}}}"
        else:
            yield f" {SYMBOLS[found[0]]} " if found[0] in SYMBOLS else found[0]


def _name(word: str, text: str, position: int) -> tuple[str, int]:
    """A variable, a function or a name, with what follows directly: an underscore's rest, primes."""
    if word == "sqrt" and text[position : position + 1] == "(":
        inner, position = _group(text, position)
        return rf"\sqrt{{{inner}}}", position
    if word == "sum" and text[position : position + 1] == "_":
        inner, position = _group(text, position + 1)
        return rf"\sum_{{{inner}}}", position
    while match := re.match(r"_[A-Za-z]{2,}\w*", text[position:]):  # coordinate_offset
        word, position = word + match[0], position + match.end()
    if word in FUNCTIONS:
        return rf"\{word}", position
    if re.fullmatch(r"[A-Za-z]\d+", word):  # t1
        return f"{word[0]}_{{{word[1:]}}}", position
    if re.fullmatch(r"d[A-Za-z]", word):
        return rf"d{word[1]}", position
    if word in GREEK:
        return rf"\{word}", position
    if len(word) == 1:
        return word, position
    space = r"\," if re.match(r" [\w(]", text[position:]) else ""
    return rf"\mathrm{{{word.replace('_', chr(92) + '_')}}}{space}", position


def _group(text: str, position: int) -> tuple[str, int]:
    """What an index or an exponent is: in parentheses, or a sign and a name or number."""
    rest = text[position:].lstrip()
    position = len(text) - len(rest)
    if rest.startswith("("):
        depth = 0
        for i, character in enumerate(rest):
            depth += (character == "(") - (character == ")")
            if not depth:
                return _formula(rest[1:i]), position + i + 1
    match = re.match(r"-?(?:[A-Za-z]+|\d+)(?=\b|_|\()", rest)
    inner = match[0] if match else rest[:1]
    return _formula(inner), position + len(inner)
