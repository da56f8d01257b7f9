"""The folders of valid and invalid specs; files too large or too odd to keep; includes."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cortado.prototxt_like import Message, SpecError, dump, include, load, loads, prototxt, yaml_spec
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Scalar, same
from shared import SHARED, needs_shared

HERE = Path(__file__).parent
VALID = sorted((HERE / "valid").glob("*.yaml"))
INVALID = sorted(path for path in (HERE / "invalid").glob("*.*") if path.suffix != ".expected")


@dataclass(frozen=True)
class Count:
    n: tuple[int, ...] = ()


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


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", "layer:\n" + "- {}\n" * 4_000),
        (".prototxt", "layer{}\n" * 4_000),
        (".prototxt", "input_dim: 1\n" * 4_000),
        (".yaml", f"layer: {{bottom: [{'a,' * 4_000}]}}"),
    ],
)
def test_a_spec_has_so_many_values_at_most(
    suffix: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (prototxt, yaml_spec):
        monkeypatch.setattr(module, "MAX_FIELDS", 3_000)
    path = tmp_path / f"net{suffix}"
    path.write_text(text)
    with pytest.raises(SpecError, match="more than 3,000 values"):
        load(path)


def test_four_mebibytes_of_empty_layers(tmp_path: Path) -> None:
    """Whose hundreds of thousands of mistakes are not looked for."""
    (tmp_path / "net.yaml").write_text("layer:\n" + "- {}\n" * 800_000)
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "net.yaml")
    assert [error.message for error in caught.value.errors] == ["more than 250,000 values"]


def test_with_what_it_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(include, "MAX_FIELDS", 100)
    (tmp_path / "part.yaml").write_text("layer:\n" + "- {name: a}\n" * 20)
    entry = f"- {{include: {tmp_path / 'part.yaml'}}}\n"
    assert len(loads("layer:\n" + entry * 2).fields) == 40
    with pytest.raises(SpecError, match="more than 100 values with what is included"):
        loads("layer:\n" + entry * 3)


def test_old_inputs_in_their_thousands() -> None:
    dims = " ".join(f"input_dim: {n}" for n in (1, 2, 3, 4))
    text = "".join(f'input: "i{i}" {dims}\n' for i in range(999))
    (layer,) = (field.value for field in loads(text, notation="prototxt").all("layer"))
    assert len(layer.all("top")) == 999


def test_a_hundred_mistakes_are_enough() -> None:
    with pytest.raises(SpecError) as caught:
        bind(Count, loads(f"n: [{'x, ' * 10_000}]", "net.yaml"))
    assert len(caught.value.errors) == 100
    lines = str(caught.value).splitlines()
    assert len([line for line in lines if "expected an integer" in line]) == 20
    assert lines[-1] == "... and more errors"
    with pytest.raises(SpecError) as caught:
        bind(Count, loads(f"n: [{'x, ' * 30}]", "net.yaml"))
    assert str(caught.value).splitlines()[-1] == "... and 10 more errors"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    kinds = {
        b"\x89HDF\r\n\x1a\n": "an HDF5 file",
        b"PK\x03\x04rest": "a zip archive, as PyTorch's weights are",
        b"\n\x03net\xa2\x06\x0a\x00": "a binary file, such as a Caffe model",
        b"\n\x03n\xe9t\xa2\x06\x0a": "a binary file, such as a Caffe model",
    }
    for raw, kind in kinds.items():
        (tmp_path / "net.prototxt").write_bytes(raw)
        with pytest.raises(SpecError, match=re.escape(f"this is {kind}, not the text of a spec")):
            load(tmp_path / "net.prototxt")
    (tmp_path / "net.prototxt").write_bytes("name: n".encode("utf-16"))
    with pytest.raises(SpecError, match="the text is in UTF-16") as caught:
        load(tmp_path / "net.prototxt")
    assert caught.value.hint == "save it as UTF-8"
    (tmp_path / "net.prototxt").write_bytes(b"# caf\xe9\nname: 'n'")
    with pytest.raises(SpecError, match="not UTF-8: byte 0xe9"):
        load(tmp_path / "net.prototxt")


def test_no_file_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.yaml")
    for path in (tmp_path / "net.yaml", "/dev/zero"):
        with pytest.raises(SpecError, match="cannot read the file: not a file, but a pipe or a device"):
            load(path)


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
    with pytest.raises(SpecError, match="more than 256 files are included"):
        load(tmp_path / "0.yaml")


def test_values_do_not_explode(tmp_path: Path) -> None:
    for i in range(30):
        entry = f'{{include: {i + 1}.yaml, with: {{x: "${{x}}${{x}}"}}}}'
        (tmp_path / f"{i}.yaml").write_text(f"layer: [{entry}]")
    (tmp_path / "30.yaml").write_text("layer: {name: '${x}'}")
    with pytest.raises(SpecError, match="a text of more than 10,000 characters with its values"):
        loads("layer: {include: 0.yaml, with: {x: ab}}", str(tmp_path / "net.yaml"))


def test_values_keep_the_place_of_the_fragment() -> None:
    tree = load(HERE / "valid" / "values.yaml")
    names = {layer.value.text("name"): layer.value for layer in tree.all("layer")}
    width = names["res2b"].get("convolution_param").value.get("num_output").value
    assert (width.text, width.quoted, Path(width.span.source.name).name) == ("64", False, "block.yaml")
    assert (width.span.line, width.span.column) == (7, 35)
    slope = names["res2b_relu"].get("relu_param").value.get("negative_slope").value
    assert (slope.text, slope.quoted, Path(slope.span.source.name).name) == (
        "0.1",
        False,
        "rest.prototxt",
    )
    assert names["${plain}"]


def test_a_quoted_value_is_a_string(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("layer: {n: '${n}'}")
    for given, says in (("3", None), ('"3"', 'n: expected an integer, got the string "3"')):
        tree = loads(f"layer: {{include: part.yaml, with: {{n: {given}}}}}", str(tmp_path / "net.yaml"))
        (layer,) = tree.all("layer")
        assert isinstance(layer.value, Message)
        if says is None:
            assert bind(Count, layer.value) == Count((3,))
            continue
        with pytest.raises(SpecError) as caught:
            bind(Count, layer.value)
        assert (caught.value.message, caught.value.span.line) == (says, 1)


def test_what_comes_with_cortado_is_included_by_its_name(tmp_path: Path) -> None:
    """From any folder, unless a file of that name lies beside the spec."""
    spec = tmp_path / "net.yaml"
    spec.write_text("layer: {include: resnet50_to_res4f.yaml}")
    shipped = load(include.SHIPPED / "resnet50_to_res4f.yaml")
    assert same(load(spec), shipped)
    spec.write_text("layer: {include: folder/resnet50_to_res4f.yaml}")
    with pytest.raises(SpecError, match='cannot include "folder/resnet50_to_res4f.yaml"'):
        load(spec)
    (tmp_path / "vgg16_to_pool4.yaml").write_text("layer: {name: mine}")
    spec.write_text("layer: {include: vgg16_to_pool4.yaml}")
    assert [layer.value.text("name") for layer in load(spec).all("layer")] == ["mine"]


@pytest.mark.parametrize("name", ["", "a\0b.yaml", ".", "..", "n" * 300])
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
