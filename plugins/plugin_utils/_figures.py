# SPDX-License-Identifier: GPL-3.0-or-later
"""How our figures look, on a page and in a paper: one style, and SVG that depends on nothing but what is drawn.

On a page the ink takes the colour of the text around it, so that one figure is right in light and in dark. The colours
of series are of middle lightness, told apart by most colour-blind people, and keep their meaning in all figures.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import io
import re
import typing as t

if t.TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# matplotlib is imported where it is used: it takes a second, and only who draws needs it.

INK: t.Final = "#010203"  # no series has it: `page_svg` finds it again
GRID: t.Final = "#040506"
BLUE: t.Final = "#3d8fd1"
ORANGE: t.Final = "#d9822b"
GREEN: t.Final = "#3a9d5d"
GREY: t.Final = "#8a8f98"
PURPLE: t.Final = "#9a72c7"
RED: t.Final = "#d9534f"

WIDTH: t.Final = 7.6  # inches: the text width of a page, two columns of a paper

STYLE: t.Final[dict[str, t.Any]] = {
    "figure.constrained_layout.use": True,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a parameter may well hold a dollar sign
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and scaled
}


@contextlib.contextmanager
def figure(height: float, name: str) -> t.Iterator[tuple[Figure, Axes]]:
    """A figure of `height` inches in our style, with one pair of axes. `name` tells its ids from other figures'."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(t.cast("t.Any", {**STYLE, "svg.hashsalt": name})):
        drawn = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(drawn)
        yield drawn, drawn.add_subplot()


def sign(kind: str, color: str, label: str, alpha: float = 1) -> Artist:
    """An entry of a legend: a marker (``o``, ``x``, ``|``), a line (``-``) or a ``bar``."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if kind == "bar":
        return Patch(color=color, label=label, alpha=alpha)
    if kind == "-":
        return Line2D([], [], color=color, linewidth=1.6, label=label)
    size = {"o": 4, "|": 9}.get(kind, 5)
    return Line2D([], [], linestyle="none", marker=kind, markersize=size, color=color, label=label)


def plain_numbers(axis: Axis) -> None:
    """Numbers as people write them, also on a logarithmic axis: 0.1, 1, 10."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_numbers(axis: Axis, most: int) -> None:
    """Ticks at whole numbers, at most so many."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=most, min_n_ticks=1))


def page_svg(drawn: Figure, name: str, label: str) -> str:
    """`drawn` as an element of an HTML page, with `label` for those who do not see it. Same figure, same text."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids are per page, not per figure; xlink is not needed in HTML, and its address would look like a resource.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1
    )
    return svg.replace(INK, "currentColor").replace(GRID, "var(--grid)").strip()
