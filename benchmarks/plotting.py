"""Small bar charts as SVG, written by hand: no library, and readable on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABEL, VALUE = 920, 330, 90
BAR, TITLE, GAP = 20, 34, 26
GOOD, MISSED, PLAIN, SECOND, LINE = "#2f9e6e", "#d1603d", "#4878b0", "#a9a9b8", "#8a8a8a"
STYLE = "text{font:13px sans-serif;fill:#808080}.t{font:bold 15px sans-serif}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure with its name, drawn in a colour."""

    label: str
    value: float
    colour: str = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Bars on a common logarithmic scale; *mark*: where a line is drawn, for what is as good as the goal."""

    title: str
    bars: Sequence[Bar]
    mark: float | None = None


def drawing(panels: Iterable[Panel]) -> str:
    """All *panels*, one under the other, as one SVG document; those without a bar are left out."""
    parts: list[str] = []
    top = GAP // 2
    for panel in (panel for panel in panels if panel.bars):
        parts += _panel(panel, top)
        top += TITLE + BAR * len(panel.bars) + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def readable(value: float) -> str:
    """*value* with three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _panel(panel: Panel, top: int) -> list[str]:
    values = [bar.value for bar in panel.bars if bar.value > 0] + ([panel.mark] if panel.mark else [])
    if not values:
        return []
    low, high = math.log10(min(values)) - 0.3, math.log10(max(values))
    room = WIDTH - LABEL - VALUE

    def across(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * room if value > 0 else 0.0

    parts = [f'<text class="t" x="10" y="{top + 18}">{escape(panel.title)}</text>']
    first = top + TITLE
    for number, bar in enumerate(panel.bars):
        y = first + number * BAR
        length = across(bar.value)
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{LABEL}" y="{y + 3}" width="{length:.1f}" height="{BAR - 6}" rx="2" fill="{bar.colour}"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 14}">{readable(bar.value)}</text>',
        ]
    if panel.mark:
        x = LABEL + across(panel.mark)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{first - 2}" y2="{first + BAR * len(panel.bars) + 2}" '
            f'stroke="{LINE}" stroke-dasharray="4 3"/>'
        )
    return parts
