"""The folders of valid and invalid specs; files too large or too odd to keep; includes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cortado.prototxt_like import Message, SpecError, dump, load, loads, prototxt
from cortado.prototxt_like.message import Scalar, same
from shared import SHARED, needs_shared

HERE = Path(__file__).parent
VALID = sorted((HERE / "valid").glob("*.yaml"))
INVALID = sorted(path for path in (HERE / "invalid").glob("*.*") if path.suffix != ".expected")


def said(node: Message | Scalar) -> object:
    """What a tree says, without places and quotes."""
    if isinstance(node, Scalar):
        return node.text
    return [(field.name, said(field.value)) for field in node]


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_both_notations_say_the_same(path: Path) -> None:
    tree = load(path)
    assert said(tree) == said(load(path.with_suffix(".prototxt")))
    assert same(tree, loads(dump(tree)))


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.name)
def test_mistakes_are_shown_with_their_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(SpecError) as caught:
        load(path.name)
    assert f"{caught.value}\n" == path.with_name(f"{path.name}.expected").read_text("utf-8")


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    with pytest.raises(SpecError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:1:1: error: cannot read the file: No such file or directory"


@pytest.mark.parametrize("path", ["a\0b.yaml", "/", "x" * 5000])
def test_names_of_no_file(path: str) -> None:
    with pytest.raises(SpecError, match="cannot read the file"):
        load(path)


@pytest.mark.parametrize("suffix", [".yaml", ".prototxt"])
@pytest.mark.parametrize(
    "text",
    ["#" * 10_000_000, *(piece * 100_000 for piece in ("[", "a: {", "a: [", "a{", "- ", "<", "a: "))],
    ids=["10 MB", "brackets", "braces", "lists", "blocks", "dashes", "angles", "colons"],
)
def test_hostile_files_are_refused_at_once(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        load(path)
    assert time.perf_counter() - start < 1
    assert str(caught.value).startswith(f"{path}:1:")


def test_lines_count_alike_whatever_ends_them(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "net.yaml").write_bytes(f"\ufeffa: 1{end}{end}b: 2{end}".encode())
        second = load(tmp_path / "net.yaml").fields[1]
        assert (second.span.line, second.span.column, second.value.span.column) == (3, 1, 4)


def test_places() -> None:
    tree = loads("layer:\n- {name: a, bottom: [b, c]}\n", "net.yaml")
    (layer,) = tree.all("layer")
    assert str(layer.span) == "net.yaml:1:1"
    assert str(layer.value.span) == "net.yaml:2:3"
    assert isinstance(layer.value, Message)
    assert [str(f.value.span) for f in layer.value.all("bottom")] == ["net.yaml:2:22", "net.yaml:2:25"]


def test_what_is_included_keeps_its_place() -> None:
    tree = load(HERE / "valid" / "include.yaml")
    places = [Path(layer.value.span.source.name).name for layer in tree.all("layer")]
    assert places == ["include.yaml", "two.prototxt", "two.prototxt", "include.yaml"]
    assert tree.all("layer")[2].value.span.line == 2


def test_a_rule_is_not_an_inclusion() -> None:
    tree = loads("layer:\n- {name: a, include: {phase: TRAIN}}\n- {include: {phase: TEST}}\n")
    assert len(tree.all("layer")) == 2


def test_a_string_includes_from_beside_its_name(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("layer: {name: a}")
    tree = loads("layer: {include: part.yaml}", str(tmp_path / "net.yaml"))
    assert said(tree) == [("layer", [("name", "a")])]


def test_inclusions_do_not_explode(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.yaml").write_text(
            f"layer: [{{include: {i + 1}.yaml}}, {{include: {i + 1}.yaml}}]"
        )
    (tmp_path / "20.yaml").write_text("layer: {name: a}")
    with pytest.raises(SpecError, match="more than 64 files are included"):
        load(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["", "a\0b.yaml", "."])
def test_an_inclusion_of_no_file(name: str) -> None:
    tree = '"' + name.replace("\0", "\\0") + '"'
    with pytest.raises(SpecError, match="cannot include"):
        loads(f"layer: {{include: {tree}}}")


@needs_shared
def test_every_prototxt_of_caffe_is_read() -> None:
    assert SHARED
    paths = sorted(SHARED.rglob("*.prototxt"))
    assert len(paths) > 300
    refused = ("solver_type_and_enum.prototxt", "uint32_range")  # as Caffe refuses them
    for path in paths:
        if not set(refused).isdisjoint(path.parts):
            continue
        tree = load(path)
        assert same(tree, loads(prototxt.dump(tree), notation="prototxt"))
        if "caffe_vectors" not in path.parts:  # the others are small and alike
            assert dump(loads(dump(tree))) == dump(tree), path
