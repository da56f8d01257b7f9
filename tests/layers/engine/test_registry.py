"""Types by name: defined anew where they were, and never by two."""

from __future__ import annotations

from pathlib import Path

import pytest
from cortado.layers._engine import registry

PLUGIN = """
from cortado import Layer, register
{more}
@register("{type}")
class Mine(Layer):
    version = {version}
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.scan()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def version() -> object:
    entry = registry.find("MineAndNobodys")
    assert entry
    return entry.layer.version  # type: ignore[attr-defined]


def test_a_plugin_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    """Its class stands on another line then."""
    for i in (1, 2):
        text = PLUGIN.format(type="MineAndNobodys", version=i, more="\n" * i)
        (tmp_path / "mine.py").write_text(text)
        registry.load_plugin(tmp_path / "mine.py")
        assert version() == i


def test_a_notebook_s_cell_that_is_run_again() -> None:
    """Each run of a cell is a file of its own name, and its module is __main__."""
    for i in (1, 2):
        code = compile(PLUGIN.format(type="MineAndNobodys", version=i, more=""), f"<cell {i}>", "exec")
        exec(code, {"__name__": "__main__"})
        assert version() == i


def test_two_plugins_of_one_name_are_two(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        text = PLUGIN.format(type="MineAndNobodys", version=1, more="")
        (tmp_path / folder / "mine.py").write_text(text)
    registry.load_plugin(tmp_path / "a/mine.py")
    with pytest.raises(
        registry.RegistryError, match='"MineAndNobodys" is defined twice: .*a/mine.py:4 and .*b/'
    ):
        registry.load_plugin(tmp_path / "b/mine.py")


def test_a_type_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(type="ReLU", version=1, more=""))
    with pytest.raises(registry.RegistryError, match='"ReLU" is defined twice: .*neurons.py'):
        registry.load_plugin(tmp_path / "mine.py")
