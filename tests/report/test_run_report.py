"""The page of a run: whole for any run, bounded for the longest, safe against what stands in it, drawn by a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swav_ray import cli
from swav_ray.data.shards import Shards
from swav_ray.data.storage import Storage
from swav_ray.errors import without_credentials
from swav_ray.report import history as history_module
from swav_ray.report.history import POINTS, Curve, read_history
from swav_ray.report.pictures import look
from swav_ray.report.run import run_page
from swav_ray.train.backbones import load_model, read_config
from swav_ray.train.metrics import read_metrics
from swav_ray.tune.leaderboard import leaderboard
from swav_ray.tune.report import write_report
from swav_ray.tune.space_sections import Scheduler
from swav_ray.tune.study import open_study
from tests.report.browser import browser, chromium, ours, plots, widths_in_a_frame
from tests.train.small import STEPS, small_config, small_shards, train_here
from tests.tune.studies import BASELINES, PARAMS, make_space, open_journal, trial

SECTIONS = [
    *("went", "verdict", "loss", "probe", "signs", "speed", "workers", "prototypes", "map", "bad", "config"),
]
DRAWN = {"loss", "probe", "signs-0", "signs-1", "signs-2", "signs-3", "speed", "map"}
SECRET = "s3://me:hunter2@host/x?X-Amz-Signature=abcd"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, `runs/tiny`, beside its `shards`."""
    place = tmp_path_factory.mktemp("report")
    shards = small_shards(str(place / "shards"))
    train_here(small_config(shards, str(place / "runs"), "tiny", **{"probe.every_epochs": 1}))
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(trained / "runs" / "tiny", tmp_path / "tiny"))


def eventful(run: Path) -> list[dict[str, Any]]:
    """Give a run the events of two lives, set between the times of its real steps; the events."""
    rows = [row for row in read_metrics(Storage(str(run))) if "time" in row]
    first, last = rows[0]["time"], rows[-1]["time"]
    at = [first + (last - first) * share for share in (-0.5, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 1.1, 1.2)]
    events: list[dict[str, Any]] = [
        {"event": "start", "workers_before": 0, "workers": 2, "step": -1},
        {"event": "grow", "workers_before": 2, "workers": 4, "step": 4},
        {"event": "resumed", "workers": 4, "step": 5, "seconds_without_steps": 2.5},
        {"event": "lost", "workers": 4, "step": 6, "cause": f"ActorDiedError: {SECRET} <img src=x>"},
        {"event": "restart", "workers_before": 4, "workers": 3, "step": 6},
        {"event": "resumed", "workers": 3, "step": 7, "seconds_without_steps": 3.5},
        {"event": "drain", "workers_before": 3, "workers": 1, "step": 9},
        {"event": "stop", "workers": 1, "step": 10},
        {"event": "start", "workers_before": 0, "workers": 2, "step": -1},
        {"event": "share", "workers_before": 2, "workers": 1, "step": 17},
    ]
    events = [{"time": time, **event} for time, event in zip(at, events, strict=True)]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return events


def section(page: str, name: str) -> str:
    assert page.count(f'id="h-{name}"') == 1
    return page.split(f'id="h-{name}"')[1].split("</section>")[0]


def test_a_tiny_real_run_gives_a_whole_page(trained: Path) -> None:
    page = run_page(str(trained / "runs" / "tiny"))
    drawn = plots(page)
    assert set(drawn) == DRAWN, "no events: it was not started on a cluster"
    for name in SECTIONS:
        section(page, name)
    rows = read_metrics(Storage(str(trained / "runs" / "tiny")))
    line = next(trace for trace in drawn["loss"]["data"] if trace["name"] == "loss")
    assert line["x"] == list(range(1, STEPS + 1))
    assert line["y"] == pytest.approx([row["loss"] for row in rows if "loss" in row])
    level = next(trace for trace in drawn["loss"]["data"] if trace["name"].startswith("ln K"))
    assert level["y"] == pytest.approx([math.log(20)] * 2)
    probe, knn = drawn["probe"]["data"]
    scored = [row for row in rows if "probe/top1" in row]
    assert probe["y"] == [row["probe/top1"] for row in scored] and knn["y"] == [row["knn/top1"] for row in scored]
    assert probe["error_y"]["array"] == [row["probe/top1_stderr"] for row in scored] and len(scored) == 2
    assert f"step {STEPS}" in page and f"Configuration {read_config(str(trained / 'runs' / 'tiny')).hash()}" in page
    assert "No event is recorded" in section(page, "workers")


def test_few_images_are_read_from_as_few_row_groups(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a store a row group is the least there is to read; the images come from all parts of the data."""
    read, groups = Shards.read_group, []

    def counted(self: Shards, group: int, *columns: Any) -> Any:
        groups.append(group)
        return read(self, group, *columns)

    monkeypatch.setattr(Shards, "read_group", counted)
    config, model = load_model(str(trained / "runs" / "tiny"))
    assert len(look(config, model, 3).jpegs) == 3 and len(set(groups)) == len(groups) == 3
    assert len(look(config, model, 40).jpegs) == 40 and len(groups) == 3 + 6


def test_prototypes_show_their_nearest_images_and_the_map_all_by_class(trained: Path) -> None:
    page = run_page(str(trained / "runs" / "tiny"))
    grid = section(page, "prototypes")
    rows = grid.split("<figure>")[1:]
    assert 1 <= len(rows) <= 12 and all(row.count('<img src="data:image/jpeg;base64,') == 8 for row in rows)
    counts = [int(found) for found in re.findall(r"nearest to (\d+) of 330 images", grid)]
    assert len(counts) == len(rows) and counts == sorted(counts, reverse=True) and sum(counts) <= 330
    points = plots(page)["map"]["data"]
    assert [trace["name"] for trace in points] == [str(digit) for digit in range(10)]
    assert sum(len(trace["x"]) for trace in points) == 330
    few = run_page(str(trained / "runs" / "tiny"), images=50)
    assert "among 50 of 330 training images" in few
    assert sum(len(trace["x"]) for trace in plots(few)["map"]["data"]) == 50


def test_the_same_run_gives_the_same_pictures(trained: Path) -> None:
    pages = [section(run_page(str(trained / "runs" / "tiny"), images=40), "prototypes") for _ in range(2)]
    assert pages[0] == pages[1]


def test_every_event_is_marked_and_workers_follow_them(run: Path) -> None:
    events = eventful(run)
    page = run_page(str(run), images=0)
    line, *marks = plots(page)["workers"]["data"]
    steps = list(zip(line["y"], line["y"][1:], strict=False))
    assert line["y"] == [2, 4, 0, 3, 1, 0, 2, 1], "none between the loss and the restart, and between the two lives"
    assert len(steps) == 7
    names = {trace["name"]: len(trace["x"]) for trace in marks}
    assert names == {
        "start": 2,
        "growth": 1,
        "preempted with notice": 1,
        "smaller or larger share": 1,
        "workers lost": 1,
        "restart": 1,
        "asked to stop": 1,
    }
    table = section(page, "events")
    assert table.count("<tr>") == len(events) + 1
    assert table.index("smaller or larger share") < table.index("growth"), "newest first"
    words = section(page, "went")
    assert "started twice; grew once; was preempted with notice once; lost workers without notice once" in words
    assert "stood still for 6 s in all" in words


def test_the_line_of_throughput_breaks_where_workers_changed(run: Path) -> None:
    eventful(run)
    line = plots(run_page(str(run), images=0))["speed"]["data"][0]
    values = [row["images_per_second"] for row in read_metrics(Storage(str(run))) if "images_per_second" in row]
    assert [y for y in line["y"] if y is not None] == pytest.approx(values)
    assert None in line["y"] and None in line["x"]


def test_what_is_missing_is_said_in_its_place(run: Path, trained: Path) -> None:
    assert "Left out" in section(run_page(str(run), images=0), "prototypes")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(trained / "shards"), str(trained / "moved")))
    page = run_page(str(run))
    assert "The training images are not at hand" in section(page, "map") and "manifest.json" in page
    (run / "config.yaml").write_text(config)
    shutil.rmtree(run / "checkpoints")
    page = run_page(str(run))
    for name in ("prototypes", "map"):
        assert "There are no weights to look through" in section(page, name)
    assert set(plots(page)) == DRAWN - {"map"}
    for file in ("metrics.jsonl",):
        (run / file).unlink()
    page = run_page(str(run))
    assert plots(page) == {} and page.count("has not logged a step yet") >= 3
    for name in SECTIONS:
        section(page, name)


def test_half_a_last_line_and_lines_without_a_time_are_no_trouble(run: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "time"} for row in read_metrics(Storage(str(run)))]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text + text.splitlines()[0][:30])
    page = run_page(str(run), images=0)
    assert "No logged step says when" in section(page, "speed") and "loss" in plots(page)


@pytest.mark.parametrize("verdict", ["collapsed", "stuck", "diverged"])
def test_a_collapse_stands_at_the_top_with_its_advice(run: Path, verdict: str) -> None:
    rows = read_metrics(Storage(str(run)))
    unwell = [row for row in rows if "verdict" in row][-2:]
    for row in unwell:
        row |= {"verdict": verdict, "advice": "lower base_lr", "loss": math.nan, "embedding_std": math.inf}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = run_page(str(run), images=0)
    told = section(page, "verdict")
    assert f'<p class="verdict bad">{verdict}</p>' in told and "What to try: lower base_lr." in told
    assert f"{verdict} from step {unwell[0]['step']} to {STEPS}." in told
    assert "NaN" not in ours(page).split('id="figures">')[1].split("</script>")[0], "which no browser's JSON reads"


def test_no_address_shows_credentials_and_what_stands_in_texts_is_text(run: Path) -> None:
    eventful(run)
    evil = "</script><script>document.title='evil'</script><img src=http://evil/x onerror=alert(1)>"
    bad = [{"id": f"{n} {evil}", "reason": f"{SECRET} {evil}", "epoch": 0, "step": 1} for n in range(60)]
    (run / "bad_images.jsonl").write_text("".join(json.dumps(image) + "\n" for image in bad))
    (run / "status.json").write_text(json.dumps({"state": "failed", "error": f"{SECRET}: away {evil}"}))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("(?m)^  train: .*$", f"  train: {SECRET}", config))
    page = run_page(str(run))
    for text in ("hunter2", "X-Amz", "abcd"):
        assert text not in ours(page)
    assert "s3://***@host/x?***" in page
    assert "<img" not in ours(page) and "<script>document" not in ours(page)
    assert ours(page).count("<script") == 3 == ours(page).count("</script>")
    assert "60 met in training" in section(page, "bad") and section(page, "bad").count("<tr>") == 51


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a b/c.yaml", "s3://bucket/a b/c.yaml"),
        ("at http://u:p@h:80/x?k=1, and https://h/y?z", "at http://***@h:80/x?***, and https://h/y?***"),
        ("mail me@home, why? so", "mail me@home, why? so"),
        ("postgresql://u:p@w@h/d", "postgresql://***@h/d"),
    ],
)
def test_credentials_are_taken_out_of_addresses_and_nothing_else(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_a_curve_of_any_length_is_bounded_and_loses_neither_mean_nor_extremes() -> None:
    curve = Curve()
    for step in range(1, 100_001):
        curve.add(step, -50.0 if step == 12_345 else 170.0 if step == 54_321 else step / 1000, float(step))
    curve.add(100_001, math.nan)
    assert POINTS <= len(curve.x) <= 2 * POINTS and curve.lost == 1
    assert min(curve.low) == -50 and max(curve.high) == 170 and curve.x[-1] == 100_000 == curve.time[-1]
    assert curve.x == sorted(set(curve.x)) and curve.thinned == 64
    assert len(curve.means) == len(curve.x) == len(curve.low) == len(curve.high)
    assert curve.means[1000] == pytest.approx(sum(range(1000 * 64 + 1, 1001 * 64 + 1)) / 64 / 1000)


def test_a_long_run_is_read_in_little_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MOST_EVENTS", 100)
    row = next(row for row in read_metrics(Storage(str(run))) if "verdict" in row)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 40_001):
            file.write(json.dumps(row | {"step": step, "ids": ["x" * 40] * 40}) + "\n")
    with (run / "events.jsonl").open("w") as file:
        for step in range(1050):
            file.write(
                json.dumps({"time": 1.0 * step, "event": "grow", "workers": 2, "workers_before": 1, "step": step}) + "\n"
            )
    tracemalloc.start()
    found = read_history(Storage(str(run)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (run / "metrics.jsonl").stat().st_size > 60e6 and peak < 5e6, "nothing of the file is kept but points"
    assert found.steps == 40_000 and len(found.events) + found.events_before == 1050 and len(found.events) <= 200


# --- the command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["swav-ray", "report", *args])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


def test_the_command_writes_into_the_run_or_where_it_is_told(run: Path, tmp_path: Path, call: Any) -> None:
    assert call(str(run), "--images", "20")[:2] == (0, f"{run}/report.html\n")
    assert "How it went" in (run / "report.html").read_text()
    assert call(str(run), "--images", "0", "--out", str(tmp_path / "deep" / "page.html"))[0] == 0
    assert "How it went" in (tmp_path / "deep" / "page.html").read_text()


def test_mistakes_are_one_line(run: Path, tmp_path: Path, call: Any) -> None:
    for args, said in {
        (str(tmp_path / "none"),): "not a run (it has no config.yaml)",
        (str(run), "--images", "-1"): "--images -1",
        (str(run), "--out", "s3://bucket"): "s3://bucket: names no file",
    }.items():
        code, _, err = call(*args)
        assert code == 2 and said in err and len(err.splitlines()) == 1, err


def test_a_run_on_s3_has_its_page_beside_it(trained: Path, s3: str, call: Any) -> None:
    there = Storage(f"{s3}/reported/tiny")
    for name in Storage(str(trained / "runs" / "tiny")).find():
        there.put(trained / "runs" / "tiny" / name, name)
    assert call(there.uri, "--images", "30")[:2] == (0, f"{there.uri}/report.html\n")
    page = there.read("report.html").decode()
    assert set(plots(page)) == DRAWN and "<img" in page


def test_a_sweeps_folder_gives_the_sweeps_page_and_leaves_its_journal_alone(tmp_path: Path, call: Any) -> None:
    space = make_space({**PARAMS, "temperature": {"uniform": [0.05, 0.3]}}, name="board")
    space = space.model_copy(update={"scheduler": Scheduler(kind="asha", first_rung=3)})
    study = open_journal(space, tmp_path)
    study = open_study(study._storage, "board", space.directions(), space.defining())
    for number, kind in enumerate("CCPCFCRC"):
        study.add_trial(trial(space, number, kind))
    (tmp_path / "baselines.json").write_text(json.dumps(BASELINES))
    journal = (tmp_path / "study.journal").read_bytes()
    (tmp_path / "study.journal").write_bytes(journal + b'{"half')  # a sweep goes on and is writing
    code, out, _ = call(str(tmp_path))
    assert (code, out) == (0, f"{tmp_path}/report.html\n")
    assert (tmp_path / "study.journal").read_bytes() == journal + b'{"half'
    write_report(study, space, BASELINES, leaderboard(study, space, BASELINES, 31), tmp_path / "wanted.html")
    pages = [(tmp_path / name).read_text() for name in ("report.html", "wanted.html")]
    assert plots(pages[0]) == plots(pages[1])
    assert section(pages[0], "table") == section(pages[1], "table")


# --- in a real browser


def test_the_page_asks_for_nothing(run: Path) -> None:
    eventful(run)
    page = ours(run_page(str(run)))
    page = page.replace('src="data:image/jpeg;base64,', "")
    assert not re.search(r"""https?:|["'(]//|\bsrc="|\bhref=|@import|url\(""", page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'; ") and "connect-src" not in policy[1]


@browser
def test_a_browser_draws_every_plot_and_picture(run: Path) -> None:
    eventful(run)
    page = run_page(str(run))
    (run / "report.html").write_text(page)
    dom, console = chromium(run, "--window-size=1280,5000", "--dump-dom", f"file://{run}/report.html")
    assert console == [], "neither a script's error nor a request that the policy refused"
    drawn = plots(page)
    assert set(drawn) == DRAWN | {"workers"}
    for plot, figure in drawn.items():
        part = dom.split(f'<div id="{plot}" ')[1].split('<div class="plot"')[0].split("</section>")[0]
        assert part.count('class="trace scatter') == len(figure["data"]), f"{plot} is not drawn"


@browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_a_phone(width: int, run: Path) -> None:
    eventful(run)
    (run / "report.html").write_text(run_page(str(run)))
    wide, drawings = widths_in_a_frame(run, "report.html", width, height=6000)
    assert wide == width and drawings >= 9
