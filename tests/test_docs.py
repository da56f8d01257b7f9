"""The documentation: its examples run, its generated pages are valid, and nothing is left out."""

import contextlib
import dataclasses
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import docutils.core
import docutils.nodes
import pytest
from cortado.layers._data.transform import TransformParams
from cortado.layers._engine.registry import entries, find
from cortado.nets import graph, solver_params
from cortado.prototxt_like import Message, loads
from cortado.prototxt_like.bind import bind
from cortado.tools.cli import COMMANDS, main
from docutils.parsers.rst import Directive, directives, roles

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ENTRIES = {
    entry.type_name: entry
    for entry in entries()
    if entry.layer.__module__.startswith("cortado.layers.")  # not what other tests registered
}

FILE = re.compile(
    r"^\.\. code-block:: \w+\n   :caption: (?P<name>\S+)\n(?P<text>(?:\n|   .*\n)+)", re.MULTILINE
)
PAGES = ("commands.rst", "data_sets.rst", "faithfulness.rst", "layers/index.rst")
COMMAND = re.compile(r"^( +)\$ cortado (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def generate():
    sys.path.insert(0, str(DOCS))
    import generate

    yield generate
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def known(generate):
    """All figures but the gradient checks, which take a minute; of those, one layer's."""
    return generate.figures({"Softmax": generate.check(ENTRIES["Softmax"]), "Accuracy": []})


@pytest.fixture(scope="module")
def pages(generate, known):
    return generate.pages(known)


@pytest.fixture
def aside(tmp_path, monkeypatch):
    """A folder of its own, whose modules are forgotten afterwards, and with them the name caffe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "104")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("caffe", "doubling", "shrink"):
            del sys.modules[name]


def run_tests(file):
    """Run a page's tests in a process of their own; print what fails."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), "."])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, file]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, done.stderr)


def run_command(arguments):
    """Run a command of the page in this process and print what it shows."""
    with contextlib.redirect_stderr(sys.stdout):
        try:
            main(shlex.split(arguments))
        except SystemExit as end:
            if end.code not in (0, 1, 2):
                raise


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.rst")), ids=lambda path: path.stem)
@pytest.mark.usefixtures("aside")
# Dynamo makes an instance of a Function, for its context
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_examples(path):
    """A page's captioned blocks are files; its ``>>>`` and ``$ cortado`` lines run beside them."""
    text = path.read_text("utf-8")
    for found in FILE.finditer(text):
        Path(found["name"]).write_text(textwrap.dedent(found["text"]).lstrip("\n"), "utf-8")
    source = COMMAND.sub(lambda m: f"{m[1]}>>> run_command({m[2]!r})", text)
    names = {"run_command": run_command, "run_tests": run_tests}
    test = doctest.DocTestParser().get_doctest(source, names, path.name, str(path), 0)
    shown = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed = runner.run(test, out=shown.write).failed
    assert not failed, shown.getvalue()


@pytest.mark.parametrize(
    ("plain", "formula"),
    [
        ("y = x / max(|x|, eps)", r"y = x / \max(|x|, \mathrm{eps})"),
        ("L = 1/(2N) sum_i s_i d_i^2", r"L = 1/(2N) \sum_{i} s_{i} d_{i}^{2}"),
        ("c = 1 for s_i = 1,    else 0", r"c = 1 \text{ for } s_{i} = 1, \quad \text{ else } 0"),
        ("z = top . x'^-beta  (Eq. 7)", r"z = \mathrm{top} \cdot x'^{-\beta} \quad \text{ (Eq. 7) }"),
        ("(x - mean_x) ^ power <- t1", r"(x - \mathrm{mean}_{x}) ^{\mathrm{power}} \leftarrow t_{1}"),
    ],
)
@pytest.mark.usefixtures("generate")
def test_plain_equations_are_mathematics(plain, formula):
    from mathematics import tex

    assert " ".join(tex(plain).split()) == rf"\begin{{gathered}} {formula} \end{{gathered}}"


def test_no_equation_is_left_as_code(pages):
    """Of the pages of layers whose files have one."""
    assert ".. math::" in pages["layers/KNN.rst"]
    for name, page in pages.items():
        if name.startswith("layers/"):
            for formula in re.findall(r"\.\. math::\n\n((?:   .*\n)+)", page):
                bare = re.sub(r"\\(?:text|mathrm)\{[^}]*\}|\\[a-z]+|\{gathered\}", "", formula)
                assert formula.count("{") == formula.count("}"), formula
                assert not re.search(r"[A-Za-z]{3,}", bare), formula


@pytest.mark.parametrize("type_name", ENTRIES)
def test_every_parameter_has_a_meaning(type_name):
    def without(kind, at):
        for field in dataclasses.fields(kind):
            if not field.metadata.get("doc") and not dataclasses.is_dataclass(field.default):
                yield f"{at}{field.name}"

    assert not [*without(ENTRIES[type_name].layer.Params, "")]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.rst")), ids=lambda path: path.stem)
def test_every_file_of_a_page_is_used(path):
    text = path.read_text("utf-8")
    for found in FILE.finditer(text):
        uses = [line for line in text.split("\n") if re.match(r" *(>>>|\.\.\.|\$)", line)]
        included = [other["text"] for other in FILE.finditer(text)]
        name = found["name"].removesuffix(".py")
        assert any(name in use for use in (*uses, *included)), name


@pytest.mark.parametrize("type_name", ENTRIES)
def test_a_layers_page_is_valid(type_name, pages):
    assert warnings(pages[f"layers/{type_name}.rst"]) == ""


@pytest.mark.parametrize("name", PAGES)
def test_another_generated_page_is_valid(name, pages):
    assert warnings(pages[name]) == ""


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.rst")), ids=lambda path: path.stem)
def test_a_written_page_is_valid(path):
    assert warnings(path.read_text("utf-8")) == ""


class Anything(Directive):
    """Stands for Sphinx' own directives, of which only the build knows more."""

    has_content = True
    option_spec: ClassVar = {"caption": str, "maxdepth": int}
    optional_arguments = 1

    def run(self):
        return []


for name in ("toctree", "code-block"):
    directives.register_directive(name, Anything)
roles.register_generic_role("doc", docutils.nodes.literal)


def warnings(text):
    shown = io.StringIO()
    docutils.core.publish_doctree(text, settings_overrides={"warning_stream": shown, "report_level": 2})
    return shown.getvalue()


def test_what_is_not_valid_is_seen():
    assert "Undefined substitution" in warnings("the length |x|")


@pytest.mark.parametrize("type_name", ENTRIES)
def test_a_layers_example_is_a_spec(type_name, generate):
    """It names the type, as many blobs as it takes, and parameters that bind."""
    entry = ENTRIES[type_name]
    message = loads("layer:\n" + generate.layer_pages.example(entry))
    (layer,) = (field.value for field in message.all("layer"))
    assert layer.text("type") == type_name
    for name, (low, high) in (("bottom", entry.bottoms), ("top", entry.tops)):
        count = len(layer.all(name))
        assert low <= count <= (count if high is None else high)
    blocks = [f for f in layer if f.name.endswith("_param")]
    beside = [f for f in blocks if f.name != entry.layer.block]
    own = [g for f in blocks if f not in beside for g in f.value]
    bind(entry.layer.Params, Message(message.span, [*own, *beside]))


def test_a_page_has_its_parts(pages):
    page = pages["layers/ChannelL2Norm.rst"]
    for part in (
        "Bottom: ``[N, C, ...]``",
        ":Also called: ``L2NormLayer``",
        "``eps_mode``\n     - ``NONE``, ``SQRT``, ``MAX``",
        "``cortado.functional.channel_l2_norm``",
        "type: ChannelL2Norm",
        "a zero vector",
        "Benchmarks\n----------",
    ):
        assert part in page
    assert 'bottom "bottom"\n     - ok' in pages["layers/Softmax.rst"]
    assert "No bottom of its samples has a gradient" in pages["layers/Accuracy.rst"]


def test_every_difference_is_on_a_layers_page(known):
    """But those of code that no layer is: boxes."""
    for row in known.faithfulness.rows:
        names = re.findall(r"\w+", row[0])
        assert any(find(name) for name in names), row[0]


def test_every_command_has_an_example(pages):
    page = pages["commands.rst"]
    for name in COMMANDS:
        section = page.split(f"cortado {name}\n----", 1)[1].split("\n----", 1)[0]
        assert re.search(rf"code-block:: console\n\n   .*\bcortado {name}\b[^\[]*$", section, re.M)


@pytest.mark.parametrize(
    "fields",
    [
        graph.LayerFields,
        graph.NetFields,
        graph.StateFields,
        graph.Rule,
        graph.ParamSpec,
        graph.MatchParams,
        solver_params.SolverParams,
        TransformParams,
    ],
)
def test_the_page_of_the_language_names_every_field(fields):
    text = (DOCS / "spec.rst").read_text("utf-8")
    missing = [f.name for f in dataclasses.fields(fields) if not re.search(rf"\b{f.name}\b", text)]
    assert not missing


@pytest.mark.slow
def test_the_whole_build(tmp_path):
    """Warnings are errors."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in (
        [DOCS / "generate.py", tmp_path],
        ["-m", "sphinx", "-q", "-W", "-c", DOCS, tmp_path / "source", tmp_path / "html"],
    ):
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    built = {path.stem for path in (tmp_path / "html" / "layers").glob("*.html")}
    assert built == {*ENTRIES, "index"}
