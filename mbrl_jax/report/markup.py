"""HTML for the report: tables, and figures as inline SVG, numbered in the order of the page."""

import html
import io
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mbrl_jax import strict_json

TEXT = 9  # points, of legends and the like; a phone shows a figure a little smaller than it is
WIDTH = 4.0  # inches

escape = html.escape


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text, perhaps of a class of the style sheet."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page with its heading."""
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def heading(text: str) -> str:
    """The heading of a part of a section."""
    return f"<h3>{escape(text)}</h3>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column names its rows; it scrolls by itself where it is wider than the page."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    body = "\n".join(lines)
    told = f"<caption>{escape(caption)}</caption>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>{told}'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def details(summary: str, text: str) -> str:
    """Preformatted text behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def side_by_side(*figures: str) -> str:
    """Figures beside each other, as many as there is room for."""
    return '<div class="figures">' + "\n".join(figures) + "</div>"


def plain(label: str) -> str:
    """A label as matplotlib must be given it, so that it sees no formula in it."""
    return label.replace("$", r"\$")


def tick(label: str) -> str:
    """A label for a tick of an upright axis, in lines that leave room for the axes."""
    return _in_lines(plain(label), 20)


def _in_lines(label: str, length: int) -> str:
    return "\n".join(textwrap.wrap(label, length, break_on_hyphens=False))


def new_axes(height: float = 3.0, rows: int = 1, **settings: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with axes below each other."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = list(figure.subplots(rows, 1, squeeze=False, **settings).ravel())
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def readable_log(ax: Axes) -> None:
    """Make the upright axis logarithmic with plain numbers, if what has been drawn spans enough for that."""
    low, high = ax.dataLim.intervaly
    if high < 5 * low:
        return
    ax.set_yscale("log")
    subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, columns: int = 1) -> None:
    """A legend of all that has a label, once each, below the axes, for which the figure grows."""
    found: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        found.update(zip((_in_lines(label, 48 // columns) for label in labels), handles, strict=True))
    rows = sum(label.count("\n") + 1 for label in found) / columns
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * math.ceil(rows))
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=TEXT,
        borderaxespad=0.1,
        handlelength=2.3,
        columnspacing=1.0,
    )


class Figures:
    """Makes the figures of a page, numbered as they are asked for."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, figure: Figure, alt: str, caption: str) -> str:
        """A figure with what it shows in words, for those who cannot see it, and its caption."""
        self.count += 1
        return f"<figure>{inline_svg(figure, self.count, alt)}{self._caption(caption)}</figure>"

    def animate(self, figure: Figure, alt: str, caption: str, data: dict[str, Any]) -> str:
        """An animation: a canvas that the page's script draws ``data`` on, with controls, beside curves of the same.

        The curves share their first axis, the step; where they lie is told to the script, which moves a line over them.
        """
        self.count += 1
        svg = inline_svg(figure, self.count, alt)
        width, height = figure.get_size_inches() * 72
        boxes = [ax.get_position() for ax in figure.axes]
        low, high = figure.axes[0].get_xlim()
        left, right = boxes[0].x0 * width, boxes[0].x1 * width
        data["cursor"] = {
            "zero": round(left - low * (right - left) / (high - low), 2),
            "step": round((right - left) / (high - low), 5),
            "top": round((1 - max(box.y1 for box in boxes)) * height, 2),
            "bottom": round((1 - min(box.y0 for box in boxes)) * height, 2),
        }
        name = f"animation-{self.count}"
        return (
            f'<figure class="animation" id="{name}"><div class="stage"><div class="film">'
            f'<canvas role="img" aria-label="{escape(alt)}"></canvas><div class="controls">'
            f'<button type="button" aria-controls="{name}">play</button>'
            f'<input type="range" min="0" max="{len(data["real"]) - 1}" value="0" aria-label="step">'
            f"<output>step 0</output></div></div>{svg}</div>"
            f'<script type="application/json">{as_json(data)}</script>{self._caption(caption)}</figure>'
        )

    def _caption(self, text: str) -> str:
        return f"<figcaption><b>Figure {self.count}.</b> {escape(text)}</figcaption>"


def as_json(data: Any) -> str:
    """Compact JSON that can stand in a script element."""
    return strict_json.dumps(data, separators=(",", ":")).replace("</", "<\\/")


def inline_svg(figure: Figure, number: int, alt: str) -> str:
    """A figure as an ``svg`` element; its names are its own in the page, and the same figure gives the same bytes."""
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mbrl_jax", "svg.fonttype": "none"}):
        figure.savefig(written, format="svg", dpi=150, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text).replace("xlink:href", "href")
    text = re.sub(r'( id="|url\(#| href="#)', rf"\1f{number}-", text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
