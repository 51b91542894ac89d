"""The frame of a page: HTML, style, script, and the plots' look in light and dark."""

from __future__ import annotations

from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · swav-ray {kind}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="summary">{summary}</p>
<noscript><p>The plots need JavaScript; words, tables and pictures do not.</p></noscript>
{body}
</main>
<script type="application/json" id="figures">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { --ink: #1d2733; --soft: #57646f; --ground: #fff; --line: #dfe5eb; --shade: #f4f6f8; --warn: #9a5b00; --bad: #b32a3e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dbe2e9; --soft: #98a5b1; --ground: #14191f; --line: #2d3742; --shade: #1c232b }
  :root { --warn: #e0a24a; --bad: #f07a8a }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere }
h2 { margin: 2.2em 0 .2em; font-size: 1.2rem; overflow-wrap: anywhere }
p { margin: .4em 0; max-width: 75ch; overflow-wrap: anywhere }
section > h2 + p { color: var(--soft); font-size: .92rem }
.words p { margin: .7em 0 }
.summary, .none { color: var(--soft) }
.none { padding: 1em; background: var(--shade); border-radius: 6px }
.plot, .scroll { overflow-x: auto }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 12px }
.grid.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 450px), 1fr)) }
.grid > * { min-width: 0 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; white-space: nowrap }
td:last-child { white-space: normal; min-width: min(16em, 50vw) }
th { color: var(--soft); font-weight: 600 }
.num { text-align: right }
tr.baseline { background: var(--shade) }
tr.pruned td:nth-child(4) { color: var(--warn) }
tr.failed td:nth-child(4) { color: var(--bad) }
pre { padding: 14px; background: var(--shade); border-radius: 6px; font-size: .85rem; line-height: 1.45 }
.verdict { display: inline-block; padding: .1em .7em; border-radius: 1em; font-weight: 600; color: #fff }
.good { background: #21805e }
.bad { background: #b32a3e }
.prototypes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 18px 28px }
.prototypes figure { margin: 0; min-width: 0 }
.thumbs { display: grid; grid-template-columns: repeat(8, minmax(0, 64px)); gap: 3px }
.thumbs img { width: 100%; aspect-ratio: 1; border-radius: 3px; display: block }
figcaption { color: var(--soft); font-size: .82rem; margin-top: 4px; overflow-wrap: anywhere }
.js-plotly-plot .plotly .modebar { opacity: .6 }
"""

SCRIPT = """
const page = JSON.parse(document.getElementById('figures').textContent);
const dark = matchMedia('(prefers-color-scheme: dark)'), touch = matchMedia('(pointer: coarse)');
const config = {responsive: true, displaylogo: false, modeBarButtons: [['zoom2d', 'pan2d', 'resetScale2d', 'toImage']]};
function draw() {
  const template = page.templates[dark.matches ? 'dark' : 'light'];
  for (const [id, plot] of Object.entries(page.figures)) {
    const copy = structuredClone(plot), layout = {...copy.layout, template};
    if (touch.matches) layout.dragmode = false;  // a finger on a plot scrolls the page
    Plotly.react(id, copy.data, layout, {...config, displayModeBar: touch.matches || layout.height < 300 ? false : 'hover'});
  }
}
dark.addEventListener('change', draw);
draw();
"""


def _template(ink: str, grid: str, ground: str) -> dict[str, Any]:
    axis = {"gridcolor": grid, "linecolor": grid, "zeroline": False, "automargin": True, "title": {"standoff": 8}}
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": ink, "family": "system-ui, sans-serif", "size": 12},
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": ground, "bordercolor": grid, "font": {"color": ink}, "align": "left"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": grid, "activecolor": ink},
            "annotationdefaults": {"bgcolor": ground, "opacity": 0.9, "borderpad": 1},
        }
    }


TEMPLATES = {"light": _template("#1d2733", "#dfe5eb", "#ffffff"), "dark": _template("#dbe2e9", "#2d3742", "#14191f")}
