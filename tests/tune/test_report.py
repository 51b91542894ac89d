"""The page: whole and sensible for any study, safe against what stands in names and errors, and drawn by a real browser."""

from __future__ import annotations

import html
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import IntDistribution

from swav_ray.tune.leaderboard import leaderboard
from swav_ray.tune.report import write_report
from swav_ray.tune.space import Space
from tests.report.browser import browser, chromium, ours, plots, widths_in_a_frame
from tests.tune.studies import BASELINES, PARAMS, make_space, open_journal, trial

SECTIONS = ["history", "contour", "slices", "parallel", "curves", "importances", "timeline"]
FIVE = PARAMS | {"queue_length": {"int": [0, 400]}}


def page_of(folder: Path, space: Space, trials: list[tuple[str, dict[str, Any]]], baselines: Any = BASELINES) -> str:
    study = open_journal(space, folder)
    for number, (kind, attrs) in enumerate(trials):
        study.add_trial(trial(space, number, kind, **attrs))
    study = open_journal(space, folder)
    write_report(study, space, baselines, leaderboard(study, space, baselines, 31), folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def plain(kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [(kind, {}) for kind in kinds]


def conditional(kinds: str) -> tuple[Space, list[tuple[str, dict[str, Any]]]]:
    """Two objectives, an ordered choice of lists, a setting that every second trial has, one that no trial has."""
    space = make_space(
        {
            "optimizer": {"choice": ["adamw", "lars"]},
            "crop_sizes": {"choice": [[16, 8], [24, 12], [32, 16]]},
            "base_lr": {"loguniform": [0.01, 10]},
            "queue_length": {"int": [0, 64]},
        },
        objective=["probe/top1", "gpu_hours"],
    )
    spread = {key: space.params[key].distribution() for key in ("optimizer", "base_lr")}
    trials: list[tuple[str, dict[str, Any]]] = []
    for number, kind in enumerate(kinds):
        point: dict[str, Any] = {"optimizer": ["adamw", "lars"][number % 2], "crop_sizes": number % 3}
        if number % 2:
            point["base_lr"] = 0.02 * (1 + number)
        distributions = {key: spread.get(key, IntDistribution(0, 2)) for key in point}
        settings = point | {"crop_sizes": [[16, 8], [24, 12], [32, 16]][number % 3]}
        trials.append((kind, {"params": point, "settings": settings, "distributions": distributions}))
    return space, trials


ONE = {"temperature": {"loguniform": [0.05, 0.3]}}
BARE = dict.fromkeys(("spans", "rungs", "epochs_done", "seconds", "gpu_hours", "run", "settings", "top1_stderr"))
CASES: dict[str, Any] = {
    "full": lambda: (make_space(FIVE), plain("CCPCCPFCCPCCRCPCCPCCR")),
    "nothing": lambda: (make_space(), []),
    "one complete": lambda: (make_space(), plain("C")),
    "two complete": lambda: (make_space(), plain("CC")),
    "equal": lambda: (make_space(), [("C", {"value": 0.9})] * 12),
    "one param": lambda: (make_space(ONE), plain("CPCCRFCCC")),
    "one fixed choice": lambda: (make_space({"temperature": {"choice": [0.1]}}), plain("CPC")),
    "all failed": lambda: (make_space(), plain("FFF")),
    "all running": lambda: (make_space(), plain("RR")),
    "all pruned": lambda: (make_space(), plain("PPPP")),
    "no attributes": lambda: (make_space(), [(kind, BARE) for kind in "CPFR"]),
    "open span": lambda: (make_space(), [("C", {}), ("R", {"spans": [[1_700_000_000.0, None]]})]),
    "knn": lambda: (make_space(objective="knn/top1"), plain("CPCRF")),
    "conditional": lambda: conditional("CCCFCCRCCCCC"),
    "mixed choice": lambda: (make_space({"elastic.gpus_per_worker": {"choice": [None, 0, 1]}}), plain("CCPCCC")),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("baselines", [BASELINES, []], ids=["baselines", "none"])
def test_any_study_gives_a_whole_page(name: str, baselines: Any, tmp_path: Path) -> None:
    space, trials = CASES[name]()
    page = page_of(tmp_path, space, trials, baselines)
    drawn = plots(page)
    for section in SECTIONS:
        assert page.count(f'id="h-{section}"') == 1
        part = page.split(f'id="h-{section}"')[1].split("</section>")[0]
        assert 'class="none"' in part or f'<div id="{section}' in part, "a plot, or words on why there is none"
    for plot in drawn:
        assert page.count(f'<div id="{plot}" role="img" aria-label="') == 1
    assert ("cost" in drawn) == (name == "conditional")
    for text in ("What was found", "Leaderboard", "The space", "recipe: demo-digits"):
        assert text in page


def test_a_full_study_has_every_plot(tmp_path: Path) -> None:
    drawn = plots(page_of(tmp_path, *CASES["full"]()))
    assert set(drawn) == {*SECTIONS, *(f"slices-{n}" for n in range(5))} - {"slices"}
    names = [trace.get("name") for trace in drawn["history"]["data"]]
    states = ["complete", "stopped early", "failed", "running"]
    assert names == [*states, "best so far", "random init 0.820", "raw 16x16 pixels 0.910"]
    assert drawn["history"]["data"][0]["error_y"]["array"] == [0.008] * 13
    dashes = [trace["line"]["dash"] for trace in drawn["curves"]["data"]]
    assert (dashes.count("solid"), dashes.count("dash"), dashes.count("dot")) == (13, 5, 2)
    assert [len(trace["y"]) for trace in drawn["timeline"]["data"]] == [15, 6, 1, 2], "a bar a life: trials 3, 10, 17 had two"
    assert drawn["contour"]["data"][0]["type"] == "contour"
    assert drawn["contour"]["layout"]["xaxis"]["title"]["text"] == "num_prototypes"


def test_lanes_never_overlap(tmp_path: Path) -> None:
    bars: dict[int, list[tuple[float, float]]] = {}
    for trace in plots(page_of(tmp_path, *CASES["full"]()))["timeline"]["data"]:
        for lane, start, length in zip(trace["y"], trace["base"], trace["x"], strict=True):
            bars.setdefault(lane, []).append((start, start + length))
    assert set(bars) == {1, 2, 3, 4}
    for spans in bars.values():
        spans.sort()
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))


def test_conditional_ordered_and_list_settings_are_drawn_by_their_values(tmp_path: Path) -> None:
    drawn = plots(page_of(tmp_path, *conditional("CCCFCCRCCCCC")))
    titles = {plot["layout"]["xaxis"]["title"]["text"]: plot for name, plot in drawn.items() if name.startswith("slices")}
    assert set(titles) == {"optimizer", "crop_sizes", "base_lr"}, "queue_length was in no trial"
    assert titles["crop_sizes"]["layout"]["xaxis"]["ticktext"] == ["[16, 8]", "[24, 12]", "[32, 16]"]
    assert titles["base_lr"]["layout"]["xaxis"]["ticktext"][:3] == ["0.01", "0.1", "1"]
    assert len(titles["base_lr"]["data"][0]["x"]) == 5
    assert "not used" in [note["text"] for note in drawn["parallel"]["layout"]["annotations"]]


def test_what_stands_in_names_and_errors_is_text(tmp_path: Path) -> None:
    evil = "</script><script>document.title='evil'</script><img src=http://evil/x onerror=alert(1)>"
    space = make_space({"optimizer": {"choice": [evil, "lars"]}, "temperature": {"uniform": [0, 1]}})
    space = space.model_copy(update={"name": evil})
    trials: Any = [("C", {}), ("C", {}), ("F", {"error": evil, "run": evil}), ("P", {"ended": evil}), ("C", {"verdict": evil})]
    page = page_of(tmp_path, space.model_copy(update={"name": "board"}), trials)
    write_report(*_again(tmp_path, space), tmp_path / "evil.html")
    for text in (page, (tmp_path / "evil.html").read_text()):
        assert "<img" not in ours(text) and "<script>document" not in ours(text)
        assert ours(text).count("<script") == 3 == ours(text).count("</script>")
        assert "&lt;img src=http://evil" in ours(text)
        assert "<" not in text.split('id="figures">')[1].split("</script>")[0], "nothing in the plots' data ends its script"


def _again(folder: Path, space: Space) -> Any:
    study = open_journal(space.model_copy(update={"name": "board"}), folder)
    return study, space, BASELINES, leaderboard(study, space, BASELINES, 31)


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page = ours(page_of(tmp_path, *CASES["full"]()))
    assert not re.search(r"""https?:|["'(]//|\bsrc=|\bhref=|@import|url\(""", page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'; ") and "connect-src" not in policy[1]
    assert "unsafe-eval" not in policy[1] and len(re.findall("sha256-", policy[1])) == 2


def test_a_databases_password_stays_out(tmp_path: Path) -> None:
    space = make_space().model_copy(update={"study": "sqlite:///u:hunter2@h/db"})
    page = page_of(tmp_path, space, plain("C"))
    assert "hunter2" not in page and "recipe: demo-digits" in page


@browser
@pytest.mark.parametrize("name", ["full", "conditional", "one param", "two complete", "all failed", "nothing", "knn"])
def test_a_browser_draws_every_plot(name: str, tmp_path: Path) -> None:
    space, trials = CASES[name]()
    drawn = plots(page_of(tmp_path, space, trials))
    dom, console = chromium(tmp_path, "--window-size=1280,2000", "--dump-dom", f"file://{tmp_path}/report.html")
    assert console == [], "neither a script's error nor a request that the policy refused"
    for plot, figure in drawn.items():
        part = dom.split(f'<div id="{plot}" ')[1].split('<div class="plot"')[0].split("</section>")[0]
        assert 'class="main-svg"' in part, f"{plot} is not drawn"
        kinds = {"scatter": 'class="trace scatter', "contour": 'class="contour"', "bar": 'class="trace bars"'}
        for kind in {trace["type"] for trace in figure["data"]}:
            assert part.count(kinds[kind]) == sum(trace["type"] == kind for trace in figure["data"]), f"{plot}: {kind}"
        title = figure["layout"].get("xaxis", {}).get("title", {}).get("text")
        assert title is None or html.escape(title, quote=False) in part


@browser
def test_plots_follow_light_and_dark_and_can_be_photographed(tmp_path: Path) -> None:
    page_of(tmp_path, *CASES["full"]())
    inks = {"dark": "rgb(219, 226, 233)", "light": "rgb(29, 39, 51)"}
    for look, other in (("dark", "light"), ("light", "dark")):
        arguments = ["--window-size=1280,5600", f"--blink-settings=preferredColorScheme={0 if look == 'dark' else 1}"]
        dom, _ = chromium(tmp_path, *arguments, "--dump-dom", f"file://{tmp_path}/report.html")
        assert f"fill: {inks[look]}" in dom and f"fill: {inks[other]}" not in dom
        picture = tmp_path / f"{look}.png"
        chromium(tmp_path, *arguments, f"--screenshot={picture}", f"file://{tmp_path}/report.html")
        assert picture.stat().st_size > 100_000, "a blank page is a tenth of it"


@browser
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_sticks_out_of_a_phone(width: int, tmp_path: Path) -> None:
    """What is wider scrolls inside its own box."""
    page_of(tmp_path, *CASES["full"]())
    wide, drawings = widths_in_a_frame(tmp_path, "report.html", width)
    assert wide == width and drawings > 11
