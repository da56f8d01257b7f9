"""Faults planted in the kernels' text, one at a time, that the host runs must catch.

The rules are generic; every line of a ``.cu`` (or of the prelude) outside of comments and macros is
a place for them. A mutant is caught when a launch fails on the host (a sanitizer's report, a stuck
barrier, no end) or the layer's results differ from the torch path's. A fault that nothing could see
is explained in the text, at its line: ``// unseen: why``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cuda_host
import cuda_proof
import torch
from cortado.layers._engine import cuda, kernel_text, registry
from cuda_host import CompileError, Host, HostError
from torch import Tensor

OPERATORS = {
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " && ": " || ",
    " || ": " && ",
    " * ": " + ",
    " / ": " * ",
    " % ": " / ",
    " + ": " - ",
    " - ": " + ",
    " += ": " -= ",
    " -= ": " += ",
    " /= ": " *= ",
}
# Thread orders and block sizes a mutant must survive, most telling first
RUNS: tuple[tuple[str, int | None], ...] = (("random", 64), ("ascending", None), ("descending", 32))
BATCH = 24  # mutants compiled together


@dataclass(frozen=True)
class Mutant:
    """A text with one fault."""

    path: Path
    line: int
    fault: str
    code: str
    source: str  # the line as it was

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}: {self.fault}: {self.source.strip()}"

    @property
    def is_explained(self) -> bool:
        return "unseen: " in self.source


def mutants(path: Path, code: str) -> list[Mutant]:
    """All mutants of a text, by line."""
    lines = code.split("\n")
    found = []
    for number, bare in enumerate(kernel_text.without_comments(code).split("\n")):
        if bare.lstrip().startswith("#"):
            continue
        for start, end, text, fault in _faults(bare):
            changed = lines[number][:start] + text + lines[number][end:]
            whole = "\n".join([*lines[:number], changed, *lines[number + 1 :]])
            found.append(Mutant(path, number + 1, fault, whole, lines[number]))
    return found


def _faults(line: str) -> Iterator[tuple[int, int, str, str]]:
    """(start, end, replacement, what it is) for each fault a line can have."""
    for match in re.finditer(r"__syncthreads\(\);|__syncwarp\([^)]*\);", line):
        yield *match.span(), " " * len(match[0]), f"{match[0][:-1]} dropped"
    for was, now in OPERATORS.items():
        for match in re.finditer(rf"(?<=\S){re.escape(was)}(?=\S)", line):
            yield *match.span(), now, f'"{was.strip()}" to "{now.strip()}"'
    for start, end in _subscripts(line):
        inner = line[start:end]
        for change in (" + 1", " - 1"):
            yield start, end, f"({inner}){change}", f"[{inner}] to [{inner}{change}]"


def _subscripts(line: str) -> Iterator[tuple[int, int]]:
    """The insides of the brackets that index, not of those that declare an array."""
    for match in re.finditer(r"[\w\])]\[", line):
        statement = re.split(r"[;{}(]", line[: match.start()])[-1]
        declares = re.match(
            r"\s*(?:extern\s+|const\s+|__shared__\s+)*[A-Za-z_]\w*[&*]?\s+[^=]*$", statement
        )
        if declares and not re.match(r"\s*(?:return|else)\b", statement):
            continue
        depth, at = 1, match.end()
        while at < len(line) and depth:
            depth += {"[": 1, "]": -1}.get(line[at], 0)
            at += 1
        if not depth:
            yield match.end(), at - 1


@dataclass
class Verdict:
    """What became of the mutants: those that do not compile are none."""

    caught: list[tuple[Mutant, str]]
    survived: list[Mutant]
    stillborn: list[Mutant]

    @property
    def unexplained(self) -> list[Mutant]:
        return [mutant for mutant in self.survived if not mutant.is_explained]

    def report(self) -> str:
        total = len(self.caught) + len(self.survived)
        head = f"{len(self.caught)} of {total} mutants caught"
        if explained := len(self.survived) - len(self.unexplained):
            head += f", {explained} explained"
        return "\n".join([head, *(f"  not caught: {mutant}" for mutant in self.unexplained)])


class MutantHost(Host):
    """Runs the kernels of one of many mutants that were compiled together."""

    seconds = 3

    def __init__(self, order: str, nursery: Nursery, index: int) -> None:
        super().__init__(order)
        self.nursery, self.index = nursery, index

    def locate(self, plan: cuda.Plan) -> tuple[Path, int]:
        path, unit = self.nursery.program(plan, self.index)
        kernels = list(plan.text.signatures)
        return path, unit * len(kernels) + kernels.index(plan.kernel)


class Nursery:
    """Compiles a layer's mutants, in batches, for each choice of constants that is launched."""

    def __init__(self, mutants: Sequence[Mutant], text: cuda.Text) -> None:
        self.mutants, self.text = mutants, text
        self.stillborn: set[int] = set()
        self.programs: dict[tuple, tuple[Path, dict[int, int]]] = {}

    def program(self, plan: cuda.Plan, index: int) -> tuple[Path, int]:
        """The program that holds a mutant, and the mutant's place in it."""
        key = (plan.scalar, plan.constants, index // BATCH)
        if key not in self.programs:
            self._compile_all(plan)
        path, places = self.programs[key]
        if index not in places:
            raise Stillborn
        return path, places[index]

    def _compile_all(self, plan: cuda.Plan) -> None:
        batches = range(-(-len(self.mutants) // BATCH))
        with ThreadPoolExecutor(2) as pool:
            done = pool.map(lambda batch: self._compile(plan, batch), batches)
            for batch, built in zip(batches, done, strict=True):
                self.programs[plan.scalar, plan.constants, batch] = built

    def _compile(self, plan: cuda.Plan, batch: int) -> tuple[Path, dict[int, int]]:
        defines = plan.text.defines(plan.scalar, dict(plan.constants))
        members = list(range(batch * BATCH, min((batch + 1) * BATCH, len(self.mutants))))
        while True:
            codes = [self._text(index) for index in members]
            source = cuda_host.program(codes, list(plan.text.signatures))
            try:
                path = cuda_host.build(source, defines)
                return path, {index: place for place, index in enumerate(members)}
            except CompileError as error:
                broken = {int(number) for number in re.findall(r"mutant (\d+):", error.log)}
                if not broken & set(members):
                    raise
                self.stillborn |= broken
                members = [index for index in members if index not in broken]

    def _text(self, index: int) -> str:
        mutant = self.mutants[index]
        texts = {path: path.read_text() for path in (kernel_text.PRELUDE, *self.text.parts)}
        texts |= {self.text.path: self.text.code} | {mutant.path: mutant.code}
        label = f'#line 1 "mutant {index}:'
        return "\n".join(f'{label}{path.name}"\n{code}' for path, code in texts.items())


class Stillborn(Exception):
    """A mutant that does not compile."""


class Runnable(Protocol):
    """What tells mutants from the text as it is: results to compare."""

    dtype: torch.dtype

    def results(self) -> list[Tensor]: ...


def judge_layer(entry: registry.Entry, chosen: Sequence[Mutant]) -> Verdict:
    """Run a layer's samples, and one emptied, with each mutant."""
    cases = list(cuda_proof.cases(entry, [torch.float64]))
    cases += [cuda_proof.empty(case) for case in cases[:1]]
    return judge(cuda_proof.text(entry), chosen, cases, [case.expected() for case in cases])


def judge(
    text: cuda.Text,
    chosen: Sequence[Mutant],
    cases: Sequence[Runnable],
    expected: Sequence[list[Tensor]],
    runs: Sequence[tuple[str, int | None]] = RUNS,
) -> Verdict:
    """Run the cases with each mutant, and first with the text as it is, which must pass."""
    nursery = Nursery([*chosen, Mutant(text.path, 0, "none", text.code, "")], text)
    if reason := _why_caught(nursery, len(chosen), cases, expected, runs):
        raise AssertionError(f"the kernels fail without a fault: {reason}")
    verdict = Verdict([], [], [])
    for index, mutant in enumerate(chosen):
        try:
            reason = _why_caught(nursery, index, cases, expected, runs)
        except Stillborn:
            verdict.stillborn.append(mutant)
            continue
        if reason:
            verdict.caught.append((mutant, reason))
        else:
            verdict.survived.append(mutant)
    return verdict


def _why_caught(
    nursery: Nursery,
    index: int,
    cases: Sequence[Runnable],
    expected: Sequence[list[Tensor]],
    runs: Sequence[tuple[str, int | None]],
) -> str | None:
    def make(order: str) -> Host:
        return MutantHost(order, nursery, index)

    for order, threads in runs:
        for case, wanted in zip(cases, expected, strict=True):
            try:
                with cuda_host.on_host(order, threads, make):
                    found = case.results()
            except (HostError, ValueError) as error:  # ValueError: a kernel's flag for wrong values
                return str(error)
            if problems := cuda_proof.differences(found, wanted, case.dtype):
                return problems[0]
    return None


def of_layer(entry: registry.Entry) -> list[Mutant]:
    """The mutants of a layer's own text, and of the parts it shares with a few others."""
    text = cuda_proof.text(entry)
    shared = [mutant for part in text.parts for mutant in mutants(part, part.read_text())]
    return shared + mutants(text.path, text.code)


def of_prelude() -> list[Mutant]:
    """The mutants of what all kernels share."""
    return mutants(kernel_text.PRELUDE, kernel_text.PRELUDE.read_text())
