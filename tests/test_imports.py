"""The house plan's table of who may import whom, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# which read and write by prototxt_like
FILES_OF_LAYERS = ("layers/_data/caffe_files.py", "layers/_data/files.py")
ROOMS = ("_engine", "_geometry", "_data")  # of layers/
FOLDERS = ("prototxt_like", "layers", "nets", "tools", "cortado", "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# What each floor may import of cortado, of others when the module loads, and of others within
# the functions that need them.
INSIDE = {
    "prototxt_like": {"prototxt_like"},
    "layers": {"layers"},
    "nets": {"prototxt_like", "layers", "nets"},
    "tools": {"prototxt_like", "layers", "nets", "tools", "cortado"},
    "cortado": {"prototxt_like", "layers", "nets", "tools", "cortado"},
    "benchmarks": {"layers", "nets", "tools", "benchmarks", "cortado"},
}
AT_LOAD = {
    "prototxt_like": {"yaml", "google", "numpy"},
    "layers": {"torch", "numpy"},
    "nets": {"torch", "numpy", "safetensors"},
    "tools": {"torch", "numpy", "click", "rich", "pytest"},
    "cortado": {"torch", "numpy"},
    "benchmarks": {"torch", "numpy", "pytest"},
}
IN_FUNCTIONS = {
    "prototxt_like": set(),
    "layers": {"skimage", "PIL", "pycocotools", "h5py", "scipy"},
    "nets": {"h5py", "scipy"},
    "tools": {"matplotlib", "skimage", "scipy", "torch", "torchvision", "numpy", "rich", "h5py", "cv2"},
    "cortado": {"torch", "numpy", "skimage", "scipy"},
    "benchmarks": {"scipy", "skimage", "rich", "torchvision", "onnxruntime"},
}


def imports(path):
    """(full module name, whether at module level, line) of every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = [*path.relative_to(ROOT).parent.parts]
    if package[0] not in ("cortado", "benchmarks"):
        package = ["cortado", *package]
    top = set()
    for node in tree.body:
        top.add(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            top.discard(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in top, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node in top, node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_table(path):
    floor = path.relative_to(ROOT).parts[0]
    wrong = []
    for module, at_load, line in imports(path):
        parts = module.split(".")
        if parts[0] == "cortado":
            place = parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else "cortado"
            allowed = place in INSIDE[floor]
            files = path.relative_to(ROOT).as_posix() in FILES_OF_LAYERS and not at_load
            allowed |= place == "prototxt_like" and files
        elif parts[0] in sys.stdlib_module_names:
            allowed = True
        else:
            allowed = parts[0] in AT_LOAD[floor] or (not at_load and parts[0] in IN_FUNCTIONS[floor])
            allowed |= parts[0] == "google" and path == ROOT / "layers/_data/caffe_files.py"
            allowed |= parts[0] == "cupy" and path == ROOT / "layers/_engine/cuda.py" and not at_load
            allowed |= parts[0] == floor == "benchmarks"
        if not allowed:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {module}")
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_layer_file_imports_no_other_layer_file(path):
    """But private neighbours; samples import their layer; of the rooms, each those before it alone."""
    parts = path.relative_to(ROOT).parts
    if parts[0] != "layers":
        return
    inside = parts[1] in ROOMS
    allowed = {*(ROOMS[: ROOMS.index(parts[1]) + 1] if inside else ROOMS)}
    allowed |= {path.stem} if parts[1] == "_samples" else {"_samples"}
    wrong = []
    for module, _, line in imports(path):
        if module.startswith("cortado.layers."):
            first, *rest = module.removeprefix("cortado.layers.").split(".")
            private = any(name.startswith("_") for name in (first, *rest[:1])) and first not in ROOMS
            if first not in allowed and (inside or not private):
                wrong.append(f"{module}:{line}")
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_never_a_second_name(path):
    names = {"layers", "nets", "prototxt_like", "tools"}
    wrong = [f"{module}:{line}" for module, _, line in imports(path) if module.split(".")[0] in names]
    assert not wrong, f"write cortado.{{...}}: {wrong}"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cortado", ("torch", "cupy", "numpy")),
        ("cortado.tools.cli", ("torch", "cupy", "numpy")),
        ("cortado.prototxt_like", ("torch", "cupy")),
        ("cortado.nets.graph", ("torch", "cupy")),
        ("cortado.functional", ("torch", "cupy")),
    ],
)
def test_what_an_import_does_not_load(module, absent):
    check = f"import {module}, sys; print([m for m in {absent!r} if m in sys.modules])"
    done = run(check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_layers_and_their_operators_load_no_compiler():
    """Which takes seconds and 70 MB."""
    layers = "from cortado.layers._engine import registry; registry.types()"
    done = run(
        f"import sys; {layers}; print([m for m in sys.modules if m.startswith('torch._dynamo')])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


OPTIONAL = ("cupy", "pycocotools", "matplotlib", "h5py", "lmdb", "skimage", "PIL", "onnxruntime")
UNIX = ("resource", "fcntl", "pwd", "grp", "termios", "tty")


@pytest.mark.parametrize("blocked", [OPTIONAL, UNIX], ids=["optional", "unix"])
def test_everything_imports_without_what_is_optional(blocked):
    """And without what Windows does not have."""
    code = f"""
import sys, pkgutil, importlib
for name in {blocked!r}: sys.modules[name] = None
import cortado
for package in ("layers", "nets", "prototxt_like", "pycaffe", "tools"):
    root = importlib.import_module("cortado." + package)
    for module in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
        importlib.import_module(module.name)
from cortado.layers._engine import registry
print(len(registry.types()))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
