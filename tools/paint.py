"""A picture of a net in ink: SVG text, a page around it, or pixels."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .draw import FONT, LINE, MARGIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .draw import Picture, Row
    from .layout import Point

FACE = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace"
CAPTIONS = ("first branch", "its twin: the same parameters")
PAD = 28.0
TITLE = 22.0
# What fills a layer, and what surrounds it: far apart in lightness, too, for those who see no hues.
INK = {
    "data": ("#dff3e3", "#2e7d4f"),
    "learned": ("#dbe8fb", "#2f62ad"),
    "plain": ("#ffffff", "#8a929c"),
    "loss": ("#f8d3d0", "#b3261e"),
    "metric": ("#fdf0c4", "#9a7200"),
}
SHARED, LINE_INK, QUIET, PANEL = "#8a2fb0", "#5d6673", "#48505a", ("#faf6fd", "#d9c3e6")
MOST_PIXELS = 16000
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(picture: Picture) -> str:
    """The picture as one SVG document."""
    return "\n".join(_svg(picture, f'font-size="{FONT}" font-family="{FACE}"')) + "\n"


def page(picture: Picture) -> str:
    """A page that holds the picture and what is known of its layers, and needs nothing else."""
    template = (Path(__file__).parent / "draw.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": _text(picture.title),
        "PICTURE": "\n".join(_svg(picture, 'id="picture"')),
        "LAYERS": _script_json(picture.details),
        "FACE": f"{FONT}px {FACE}",
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], template)


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(text: str) -> str:
    """Safe between tags and in attributes; a character that XML does not have becomes U+FFFD."""
    return escape(_NOT_XML.sub("\ufffd", text))


def _svg(picture: Picture, attributes: str) -> Iterator[str]:
    width, height = picture.width + 2 * PAD, picture.height + 2 * PAD + TITLE
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" {attributes}>'
    )
    yield (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,1 L8,4 L0,7 z" fill="{LINE_INK}"/></marker></defs>'
    )
    yield f'<rect class="paper" width="{width:.0f}" height="{height:.0f}" fill="white"/>'
    yield f'<g id="scene"><text x="{PAD}" y="{PAD}" font-weight="bold">{_text(picture.title)}</text>'
    yield f'<g transform="translate({PAD},{PAD + TITLE})">'
    for caption, (left, top, right, bottom) in zip(CAPTIONS, picture.twins(), strict=False):
        yield (
            f'<rect class="twin" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}" rx="8" fill="{PANEL[0]}" stroke="{PANEL[1]}"/>'
            f'<text x="{left + MARGIN:.1f}" y="{top + LINE:.1f}" fill="{SHARED}">{caption}</text>'
        )
    for edge in picture.edges:
        yield (
            f'<path class="edge" data-from="{edge.tail}" data-to="{edge.head}" d="{_path(edge.route)}" '
            f'fill="none" stroke="{LINE_INK}" marker-end="url(#head)"><title>{_text(edge.lane)}</title>'
            "</path>"
        )
    for box in range(len(picture.boxes)):
        yield from _svg_box(picture, box)
    yield "</g></g></svg>"


def _path(route: Sequence[Point]) -> str:
    """Straight down past a rank, and swung from one rank to the next."""
    parts = [f"M{route[0][0]:.1f},{route[0][1]:.1f}"]
    for (x, y), (to_x, to_y) in itertools.pairwise(route):
        middle = (y + to_y) / 2
        straight = abs(x - to_x) < 0.05
        bend = "" if straight else f"C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} "
        parts.append(f"{bend or 'L'}{to_x:.1f},{to_y:.1f}")
    return " ".join(parts)


def _svg_box(picture: Picture, box: int) -> Iterator[str]:
    placed = picture.boxes[box]
    left = placed.x - placed.width / 2
    for row, y, end in picture.place(box):
        fill, ink = INK[row.kind]
        extra = ' stroke-dasharray="4 2"' if row.kind == "metric" else ""
        yield (
            f'<g class="layer {row.kind}" data-layer="{row.node}" data-box="{box}">'
            f"<title>{_text(picture.details[row.node]['name'])}</title>"
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{placed.width:.1f}" height="{end - y:.1f}" '
            f'rx="{_corner(row):g}" fill="{fill}" stroke="{ink}" '
            f'stroke-width="{2.5 if row.kind == "loss" else 1}"{extra}/>'
        )
        for text, at, weight, color in _lines(row, y):
            yield (
                f'<text x="{left + MARGIN:.1f}" y="{at:.1f}" fill="{color}"'
                f"{' font-weight=' + chr(34) + 'bold' + chr(34) if weight else ''}>{_text(text)}</text>"
            )
        if row.shares:
            yield _svg_badge(row, left + placed.width - MARGIN, y + LINE)
        yield "</g>"


def _svg_badge(row: Row, x: float, y: float) -> str:
    """Two links of a chain: parameters that several layers share."""
    return (
        f'<g class="shares" fill="none" stroke="{SHARED}" stroke-width="1.6">'
        f"<title>shares its parameters with {_text(row.shares)}</title>"
        f'<rect x="{x - 14:.1f}" y="{y - 7:.1f}" width="9" height="6" rx="3"/>'
        f'<rect x="{x - 8:.1f}" y="{y - 7:.1f}" width="9" height="6" rx="3"/></g>'
    )


def _corner(row: Row) -> float:
    return {"data": 14.0, "loss": 0.0}.get(row.kind, 4.0)


def _lines(row: Row, y: float) -> Iterator[tuple[str, float, bool, str]]:
    """The texts of a row: what, where its baseline is, whether bold, in which color."""
    if not row.lines:
        yield row.name, y + LINE - 1, False, QUIET
        return
    yield row.name, y + LINE, True, "black"
    for i, line in enumerate(row.lines, 2):
        yield line, y + LINE * i, False, QUIET


def png(picture: Picture, path: Path) -> None:
    """Write the picture as pixels, two for each of the SVG's, or fewer where it is very long."""
    from matplotlib.figure import Figure

    width, height = picture.width + 2 * PAD, picture.height + 2 * PAD + TITLE
    scale = min(2.0, MOST_PIXELS / max(width, height))
    figure = Figure(figsize=(width / 72, height / 72), dpi=72 * scale)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-PAD, width - PAD)
    axes.set_ylim(height - PAD - TITLE, -PAD - TITLE)
    axes.set_axis_off()
    axes.text(0, -TITLE, picture.title, weight="bold", **_face(), parse_math=False)
    for caption, (left, top, right, bottom) in zip(CAPTIONS, picture.twins(), strict=False):
        axes.text(left + MARGIN, top + LINE, caption, color=SHARED, **_face())
        _pixel_rect(axes, (left, top, right - left, bottom - top), *PANEL, 8, zorder=0)
    for edge in picture.edges:
        _pixel_edge(axes, edge.route)
    for box in range(len(picture.boxes)):
        _pixel_box(axes, picture, box)
    figure.savefig(path, format="png")


def _face() -> dict[str, Any]:
    return {"family": "DejaVu Sans Mono", "fontsize": FONT}


def _pixel_rect(
    axes: Axes,
    place: tuple[float, float, float, float],
    fill: str,
    ink: str,
    corner: float,
    **options: Any,
) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y, width, height = place
    style = f"round,pad=0,rounding_size={min(corner, height / 2)}" if corner else "square,pad=0"
    patch = FancyBboxPatch((x, y), width, height, boxstyle=style, fc=fill, ec=ink, **options)
    axes.add_patch(patch)


def _pixel_edge(axes: Axes, route: Sequence[Point]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    points, codes = [route[0]], [Curve.MOVETO]
    for (x, y), (to_x, to_y) in itertools.pairwise(route):
        middle = (y + to_y) / 2
        points += [(x, middle), (to_x, middle), (to_x, to_y)]
        codes += [Curve.CURVE4] * 3
    axes.add_patch(PathPatch(Curve(points, codes), fc="none", ec=LINE_INK, lw=1, zorder=1))
    (x, y) = route[-1]
    axes.fill([x, x - 2.6, x + 2.6], [y, y - 7, y - 7], color=LINE_INK, lw=0, zorder=1)


def _pixel_box(axes: Axes, picture: Picture, box: int) -> None:
    placed = picture.boxes[box]
    left = placed.x - placed.width / 2
    for row, y, end in picture.place(box):
        fill, ink = INK[row.kind]
        width = 2.5 if row.kind == "loss" else 1
        dashes = (0, (4, 2)) if row.kind == "metric" else "-"
        place = left, y, placed.width, end - y
        _pixel_rect(axes, place, fill, ink, _corner(row), lw=width, ls=dashes, zorder=2)
        for text, at, bold, color in _lines(row, y):
            weight = "bold" if bold else "normal"
            axes.text(left + MARGIN, at, text, weight=weight, color=color, parse_math=False, **_face())
        if row.shares:
            for x in (14, 8):
                badge = left + placed.width - MARGIN - x, y + LINE - 7, 9, 6
                _pixel_rect(axes, badge, "none", SHARED, 3, lw=1.6, zorder=3)
