"""Installed as a wheel, the package works from any folder; from a checkout PYTHONPATH is enough."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from shared import ROOT

PARTS = ("cortado", "layers", "nets", "prototxt_like", "tools", "setup.cfg", "pyproject.toml")
WORKS = """
import cortado, pathlib
from cortado.layers._engine import registry
from cortado.nets.specs import path
assert "ucn_hn" in str(path("ucn_hn")) and len(registry.types()) > 15
net = cortado.Net(path("ucn_demo_hn_st"), phase="TEST", stages=("deploy",), seed=1)
folder = pathlib.Path(registry.__file__).parent.parent
assert sorted(folder.rglob("*.cu")), "no CUDA text"
print(pathlib.Path(cortado.__file__).parent, net.num_parameters)
"""


def python(*arguments, cwd, path):
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's contents, built from a copy so that the tree stays as it is."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for part in (*PARTS, "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(site), ".")
    python(*build, cwd=source, path="")
    (wheel,) = site.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site / "packages")
    return site / "packages"


def test_wheel_works_from_any_folder(installed, tmp_path):
    place, parameters = python("-c", WORKS, cwd=tmp_path, path=installed).split()
    assert place == str(installed / "cortado")
    assert parameters == "89124"
    top = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert top == {"cortado"}, "nothing but the package"


def test_wheel_has_the_command_and_every_spec(installed, tmp_path):
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "cortado = cortado.__main__:main" in entry.read_text()
    shipped = {path.name for path in (installed / "cortado/nets/specs").glob("*.yaml")}
    assert shipped == {path.name for path in (ROOT / "nets/specs").glob("*.yaml")}
    spec = str(installed / "cortado/nets/specs/ucn_demo_hn.yaml")
    assert "86,368 parameters" in python("-m", "cortado", "check", spec, cwd=tmp_path, path=installed)


def test_wheel_has_the_trained_nets_and_their_card(installed, tmp_path):
    folder = ROOT / "nets/models"
    shipped = {path.name: path.read_bytes() for path in (installed / "cortado/nets/models").iterdir()}
    wanted = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert shipped == wanted
    assert {"README.md", "ucn_hn.safetensors", "ucn_hn_st.safetensors"} < shipped.keys()
    code = "import cortado; print(cortado.pretrained().net.report.path)"
    place = python("-c", code, cwd=tmp_path, path=installed).strip()
    assert place.startswith(str(installed / "cortado/nets/models"))


def test_a_checkout_works_with_pythonpath(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, checkout / part)
    place, _ = python("-c", WORKS, cwd=tmp_path, path=checkout).split()
    assert place == str(checkout / "cortado")
