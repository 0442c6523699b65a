"""A figure as an `<svg>` element inside a page."""

from __future__ import annotations

import re
from typing import Final

from esper_analytics.plots.panels import FAINT, INK, MUTED

_VARIABLES: Final = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", "#e6eaee": "--grid"}


def inline(text: str, prefix: str, alt: str) -> str:
    """The `<svg>` element alone: no XML head, no metadata, ids of its own, colours that follow the page."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var({name})")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    size = f'width="{width}pt" height="{height}pt"'
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace(size, f'class="plot" role="img" aria-label="{attribute(alt)}"', 1).strip()


def attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
