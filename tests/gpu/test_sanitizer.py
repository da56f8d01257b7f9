"""compute-sanitizer watches the kernels, where it is installed: no bad access, no race."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_proof
import device
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 100
FAULT = 99  # what the tool exits with when it found something


def sanitizer() -> str | None:
    """The tool on the path, or beside the CUDA toolkit."""
    homes = [
        os.environ.get("CUDA_HOME", ""),
        "/usr/local/cuda",
        f"/usr/local/cuda-{torch.version.cuda}",
    ]
    places = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def command(tool: str, name: str, known: str) -> list[str]:
    """The tool over the script; over cortado's kernels alone where it knows how to choose."""
    chosen = []
    if "--kernel-name" in known:
        kernels = sorted(
            {k for entry in cuda_proof.layers() for k in cuda_proof.text(entry).signatures}
        )
        chosen = [part for kernel in kernels for part in ("--kernel-name", f"kne={kernel}")]
    script = [sys.executable, str(Path(__file__).with_name("launches.py"))]
    return [tool, "--tool", name, "--error-exitcode", str(FAULT), *chosen, *script]


def environment() -> dict[str, str]:
    """Each tensor in memory of its own, so that a step beyond its end is seen."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return os.environ | {"PYTHONPATH": path, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def verdict(code: int, output: str) -> str | None:
    """Why the run proves nothing, or None for a clean one; raises for what was found."""
    summary = re.search(r"(ERROR SUMMARY: \d+ error|RACECHECK SUMMARY: \d+ hazard)", output)
    ran = re.search(r"^\d+ cases ran$", output, re.MULTILINE)
    if code == 0 and summary and ran:
        return None
    assert code != FAULT or not ran, output[-6000:]
    unable = re.search(
        r"^.*(?:not supported|[Ff]ailed to initialize|nvalid option|nrecogni[sz]ed).*$", output, re.M
    )
    assert unable, output[-6000:]
    return unable[0].strip("= ")


@pytest.mark.gpu
@device.on_cuda
@device.kernels_needed
@pytest.mark.parametrize("name", ["memcheck", "racecheck"])
def test_clean(name: str) -> None:
    tool = sanitizer()
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    known = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    try:
        done = subprocess.run(
            command(tool, name, known),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{name} took more than {SECONDS} s")
    if reason := verdict(done.returncode, done.stdout):
        pytest.skip(f"{name} cannot run here: {reason}")


def test_the_script_runs() -> None:
    script = str(Path(__file__).with_name("launches.py"))
    done = subprocess.run(
        [sys.executable, script, "cpu"], capture_output=True, text=True, env=environment()
    )
    assert re.fullmatch(r"[1-9]\d* cases ran\n", done.stdout), done.stderr


@pytest.mark.parametrize("name", ["memcheck", "racecheck"])
def test_its_words(name: str) -> None:
    words = {
        "memcheck": "ERROR SUMMARY: 0 errors",
        "racecheck": "RACECHECK SUMMARY: 0 hazards displayed",
    }
    assert verdict(0, f"3 cases ran\n========= {words[name]}\n") is None
    assert verdict(1, "========= Error: Device not supported. Please refer to") == (
        "Error: Device not supported. Please refer to"
    )
    for code, output in (
        (FAULT, "3 cases ran\n" + words[name].replace("0", "1")),
        (1, "Traceback"),
        (0, ""),
    ):
        with pytest.raises(AssertionError):
            verdict(code, output)


def test_every_kernel_is_watched() -> None:
    given = command("tool", "memcheck", "... --kernel-name ...")
    assert "kne=channel_l2_norm_forward" in given
    assert not [part for part in command("tool", "memcheck", "") if "kne" in part]
