"""A page from its sections: words, plots, tables; one self-contained file that asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from swav_ray.report.frame import PAGE, SCRIPT, STYLE, TEMPLATES

GREY = "#8a94a0"
BLUE, ORANGE, RED, GREEN, PURPLE = "#3a86d4", "#d98a1f", "#d4495d", "#2a9d74", "#8e5bd0"  # mid-tones, for light and dark


def safe(value: Any) -> str:
    """Text for a plot, where Plotly reads `<` as HTML."""
    return html.escape(str(value), quote=False)


def figure(traces: list[Any], height: int = 400, **layout: Any) -> go.Figure:
    base = {"margin": {"l": 8, "r": 8, "t": 8, "b": 8}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}
    return go.Figure(traces, base | {"height": height, "hovermode": "closest"} | layout)


class Page:
    """Sections in the order they are added.

    Args:
        title: of the page.
        kind: what it is a page of, for the browser's title.
    """

    def __init__(self, title: str, kind: str) -> None:
        self.title, self.kind = title, kind
        self._body: list[str] = []
        self._drawn: dict[str, Any] = {}

    def words(self, name: str, title: str, paragraphs: list[str]) -> None:
        """A section of plain text."""
        text = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
        self.add(name, title, "", f'<div class="words">{text}</div>')

    def plots(self, name: str, title: str, caption: str, found: go.Figure | dict[str, go.Figure] | str) -> None:
        """A section of one figure, of several side by side, or of plain words on why there is none."""
        if isinstance(found, str):
            self.none(name, title, caption, found)
            return
        if isinstance(found, dict):
            boxes = [self._box(f"{name}-{number}", f"{title}: {key}", one) for number, (key, one) in enumerate(found.items())]
            kind = "grid two" if len(boxes) in (2, 4) else "grid"
            content = f'<div class="{kind}">{"".join(boxes)}</div>'
        else:
            content = self._box(name, title, found)
        self.add(name, title, caption, content)

    def none(self, name: str, title: str, caption: str, why: str) -> None:
        """A section that has nothing to show."""
        self.add(name, title, caption, f'<p class="none">{html.escape(why)}</p>')

    def add(self, name: str, title: str, caption: str, content: str) -> None:
        """A section of ready HTML."""
        said = f'<p id="c-{name}">{html.escape(caption)}</p>' if caption else ""
        head = f'<h2 id="h-{name}">{html.escape(title)}</h2>'
        self._body.append(f'<section aria-labelledby="h-{name}">{head}{said}{content}</section>')

    def _box(self, name: str, label: str, found: go.Figure) -> str:
        plot = json.loads(found.to_json())
        plot["layout"].pop("template", None)  # the page's own, light or dark
        self._drawn[name] = plot
        least = plot["layout"].get("meta", {}).get("min_width", 0)  # what is wider than a phone scrolls
        size = f"height:{plot['layout']['height']}px;min-width:{least}px"
        inner = f'<div id="{name}" role="img" aria-label="{html.escape(label)}" style="{size}"></div>'
        return f'<div class="plot" tabindex="0">{inner}</div>'

    def html(self, summary: str) -> str:
        """The whole file, about 5 MB: Plotly travels inside."""
        content = {"figures": self._drawn, "templates": TEMPLATES}
        data = json.dumps(content).replace("<", "\\u003c")  # `</script>` in a name ends nothing
        scripts = [get_plotlyjs(), SCRIPT]
        allowed = " ".join(_hash(script) for script in scripts)
        return PAGE.format(
            title=html.escape(self.title),
            kind=self.kind,
            policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}",
            style=STYLE,
            summary=f"{html.escape(summary)} · written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            body="\n".join(self._body),
            data=data,
            plotly=scripts[0],
            script=scripts[1],
        )


def table_html(
    head: list[str],
    rows: list[list[str]],
    kinds: list[str] | None = None,
    numbers: list[list[bool]] | None = None,
    caption_of: str = "",
) -> str:
    """An HTML table of plain cells that scrolls by itself.

    Args:
        kinds: a class for each row.
        numbers: which cells stand to the right.
        caption_of: name of the section whose caption explains it.
    """
    titles = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in head)
    lines = []
    for number, row in enumerate(rows):
        right = numbers[number] if numbers else [False] * len(row)
        shades = (' class="num"' if is_number else "" for is_number in right)
        cells = "".join(f"<td{shade}>{html.escape(cell)}</td>" for cell, shade in zip(row, shades, strict=True))
        lines.append(f'<tr class="{kinds[number]}">{cells}</tr>' if kinds else f"<tr>{cells}</tr>")
    said = f' aria-describedby="c-{caption_of}"' if caption_of else ""
    inner = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table{said}>{inner}</table></div>'


def pre(text: str) -> str:
    return f'<pre class="scroll" tabindex="0">{html.escape(text)}</pre>'


def _hash(script: str) -> str:
    """Of an inline script, for the page's policy: these two may run, and nothing that a name could smuggle in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
