"""Gradient checks in a user's own suite: ``pytest --cortado-gradcheck my_net.yaml``, or the fixture.

``--cortado-gradcheck SPEC_OR_LAYER_TYPE``, as often as you like, adds a test for each. The fixture
``gradcheck`` is :func:`cortado.tools.gradcheck.check` that raises::

    def test_gradients(gradcheck):
        gradcheck("my_net.yaml", dtype="float32")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("cortado").addoption(
        "--cortado-gradcheck",
        action="append",
        default=[],
        metavar="SPEC_OR_LAYER_TYPE",
        help="check the gradients of a net or of a registered layer type",
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    for subject in config.getoption("--cortado-gradcheck"):
        items.append(GradientCheck.from_parent(session, name=f"gradcheck[{subject}]", subject=subject))


class GradientCheck(pytest.Item):
    """One net or layer type whose gradients are checked."""

    def __init__(self, *, subject: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subject = subject

    def runtest(self) -> None:
        _checked(self.subject)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from .gradcheck import GradientError

        if isinstance(excinfo.value, (GradientError, ValueError, LookupError)):
            return str(excinfo.value)  # the report says it all
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[str, None, str]:
        return self.subject, None, self.name


@pytest.fixture
def gradcheck() -> Callable[..., None]:
    """Checks a spec or a layer type as ``cortado gradcheck`` does; raises with the report."""
    return _checked


def _checked(subject: str, **options: Any) -> None:
    from .gradcheck import check

    for report in check(subject, **options):
        report.check()
