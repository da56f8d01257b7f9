"""Layer types by name. A type is found because its file lies in ``layers/``: no list to edit."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TypeVar

from .layer import Layer
from .users import PLUGIN, plugin_lines

L = TypeVar("L", bound=type[Layer])
Count = int | tuple[int, int | None]


@dataclass(frozen=True)
class Entry:
    """A registered type: its layer class and how many bottoms and tops it takes (None: any)."""

    type_name: str
    layer: type[Layer]
    bottoms: tuple[int, int | None]
    tops: tuple[int, int | None]
    place: str

    @property
    def family(self) -> str:
        """Which of cortado's layers it is among: "correspondence", those of the papers; "standard",
        Caffe's; "data"; "metrics"; "" for a layer of a user's."""
        package, _, file = self.layer.__module__.partition("cortado.layers.")
        if package or not file:
            return ""
        folder, _, inner = file.partition(".")
        return folder if inner else "correspondence"


class RegistryError(LookupError):
    """Two layers of one type, or a layer file that cannot be imported."""


_entries: dict[str, Entry] = {}
_scanned = False


def register(
    type: str,
    *,
    aliases: tuple[str, ...] = (),
    bottoms: Count | None = None,
    tops: Count | None = None,
    block: str | None = None,
) -> Callable[[L], L]:
    """Make a :class:`Layer` known by its type name and aliases.

    ``bottoms`` and ``tops`` are a count or an inclusive range, ``(1, None)`` for one or more; the
    default is what the layer's definition says, or 1;
    ``block`` names the spec's block of its parameters (default: ``inner_product_param`` for
    ``InnerProduct``).
    """

    def decorate(layer: L) -> L:
        caller = sys._getframe(1)  # inspect's getsourcelines takes 2 ms a layer
        place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        counts = _range(layer, "bottoms", bottoms), _range(layer, "tops", tops)
        entry = Entry(type, layer, *counts, place)
        before = {name: _entries[name] for name in (type, *aliases) if name in _entries}
        for name, known in before.items():
            if not _again(known, layer, caller.f_code.co_filename):
                raise RegistryError(f'layer type "{name}" is defined twice: {known.place} and {place}')
        for name in [name for name, known in _entries.items() if known in before.values()]:
            del _entries[name]
        _entries.update(dict.fromkeys((type, *aliases), entry))
        layer.type_name, layer.block = type, block or f"{snake_case(type)}_param"
        return layer

    return decorate


def _again(known: Entry, layer: type[Layer], file: str) -> bool:
    """Whether this is the layer that is known, defined anew: a plugin read again, a notebook's cell."""
    was = known.layer
    if was.__qualname__ != layer.__qualname__:
        return False
    if "__main__" in (was.__module__, layer.__module__):
        return was.__module__ == layer.__module__
    return known.place.rpartition(":")[0] == file


def _range(layer: type[Layer], blobs: str, count: Count | None) -> tuple[int, int | None]:
    if count is None and layer.definition:
        return layer.definition.count(blobs)
    count = 1 if count is None else count
    return (count, count) if isinstance(count, int) else count


def snake_case(type: str) -> str:
    """``InnerProduct`` -> ``inner_product``, ``ROIPooling`` -> ``roi_pooling``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type).lower()


def find(type: str) -> Entry | None:
    """The entry of a type name or alias, or None."""
    scan()
    return _entries.get(type)


def types() -> list[str]:
    """Every known type name and alias, sorted."""
    scan()
    return sorted(_entries)


def entries() -> Iterator[Entry]:
    """Every registered layer once, by type name."""
    scan()
    return iter(sorted(set(_entries.values()), key=lambda entry: entry.type_name))


def scan() -> None:
    """Import every layer file of the package, once."""
    global _scanned
    if _scanned:
        return
    import cortado.layers as package

    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if any(part.startswith("_") for part in module.name.split(".")[2:]):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            raise RegistryError(f"layer file {module.name} cannot be imported: {error}") from error
    _scanned = True


def load_plugin(path: str | Path) -> None:
    """Import a user's own file of layers; raises :class:`RegistryError` if that fails."""
    path = Path(path)
    name = f"{PLUGIN}{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    before = sys.modules.get(name)
    if not path.is_file():
        raise RegistryError(f"no plugin file {path}")
    loader = SourceFileLoader(name, str(path.resolve()))
    spec = importlib.util.spec_from_file_location(name, path.resolve(), loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        known = isinstance(error, RegistryError)
        why = str(error) if known else plugin_lines(error) or repr(error)
        del sys.modules[name]
        if before:
            sys.modules[name] = before
        raise RegistryError(f"plugin {path} cannot be imported: {why}") from error
