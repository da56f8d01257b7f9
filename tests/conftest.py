"""What all tests need: the count of the Caffe vector cases that held the project, tests' summaries."""

from __future__ import annotations

import os

import pytest
import torch

pytest.register_assert_rewrite("suite", "compiled")  # their asserts say what differed, too

KINDS = ("passed", "failed", "error", "skipped")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores
    config.addinivalue_line("markers", "caffe_vector: a case computed by real Caffe (counted)")


def _counted(reporter: pytest.TerminalReporter) -> tuple[int, int]:
    """How many Caffe vector cases ran, and how many were skipped."""
    seen = {kind: set() for kind in KINDS}
    for kind in KINDS:
        for report in reporter.stats.get(kind, []):
            if "caffe_vector" in getattr(report, "keywords", ()):
                seen[kind].add(report.nodeid)
    skipped = seen.pop("skipped")
    return len(set.union(*seen.values())), len(skipped)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran, skipped = _counted(terminalreporter)
    if ran or skipped:
        terminalreporter.write_line(f"Caffe vectors: {ran} cases ran, {skipped} skipped")
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(text)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In continuous integration a skipped case is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter and _counted(reporter)[1]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
