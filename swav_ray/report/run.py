"""The page of a run, finished or not: how it went, its curves, its workers, and what its prototypes and features see."""

from __future__ import annotations

import html
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import StorageAwayError, UserError, without_credentials
from swav_ray.report import curves
from swav_ray.report.history import History, read_history
from swav_ray.report.page import Page, pre, table_html
from swav_ray.report.pictures import ROWS, Sample, feature_map, grids, look
from swav_ray.train.backbones import load_model, read_config
from swav_ray.train.trainer import read_status

MOST_ROWS = 100  # of the table of events
NO_STEP = "The run has not logged a step yet."
Said = Callable[[str], None]


def run_page(uri: str, images: int = ROWS, tell: Said = lambda line: None) -> str:
    """The HTML page of a run; what is missing (weights, data, events) is said in its place.

    Args:
        uri: folder or `s3://` address of the run.
        images: of the training data to look at; 0: none.
        tell: called with a line before what takes time.

    Raises:
        UserError: no run there, or not one of this version.
    """
    run, config = Storage(uri), read_config(uri)
    tell(f"reading what {config.name or uri} has logged")
    history = read_history(run)
    status = read_status(run)
    page = Page(config.name or "run", "run")
    page.words("went", "How it went", [without_credentials(line) for line in _words(config, history, status)])
    page.add("verdict", "Collapse watch", "", _verdict(history))
    page.plots(
        "loss",
        "Loss",
        "Mean over the workers. At ln K the predictions say nothing; where a point stands for several steps, the shade "
        "reaches from the least to the largest.",
        curves.loss(history, config) or NO_STEP,
    )
    page.plots(
        "probe",
        "Accuracy",
        "Of frozen features on held-out training images, bars of one standard error.",
        curves.probes(history)
        or "No probe yet: they come at the end of the run, and every probe.every_epochs; images need labels.",
    )
    page.plots(
        "signs",
        "Learning rate and signs",
        "Dashed: the healthy end. The spread is of the embeddings over the sphere: 0 is one point.",
        curves.small_curves(history, config) or NO_STEP,
    )
    page.plots(
        "speed",
        "Throughput",
        "Images a second over all workers; the line breaks where the workers changed.",
        curves.throughput(history) or "No logged step says when it was made.",
    )
    page.plots(
        "workers",
        "Workers",
        "How many trained at a time, and every resize, restart, preemption and stop.",
        curves.workers(history) or "No event is recorded: the run was not started on a cluster, or has not begun.",
    )
    if history.events:
        page.add("events", "What happened", _events_caption(history), _events(history))
    _seen(page, uri, config, images, tell)
    if history.bad_count:
        page.add("bad", "Unreadable images", _bad_caption(history), _bad(history))
    else:
        page.none("bad", "Unreadable images", "", "None was met.")
    shown = without_credentials(config.to_yaml())
    about = "The hash names what the run computes; name, place, workers, checkpoints and trackers are not in it."
    page.add("config", f"Configuration {config.hash()}", about, pre(shown))
    return page.html(_summary(config, history, status))


def _summary(config: Config, history: History, status: dict[str, Any] | None) -> str:
    state = {"done": "done", "stopped": "stopped", "failed": "failed"}.get((status or {}).get("state", ""), "not finished")
    net = config.backbone
    arch = net.arch if ":" in net.arch else f"{net.arch}, width {net.base_width}"
    return f"{state} · step {history.steps:,} · {arch} · K {config.num_prototypes:,} · {config.hash()}"


def _words(config: Config, history: History, status: dict[str, Any] | None) -> list[str]:
    if not history.steps:
        return [f"{NO_STEP} {_ended(status)}".strip()]
    last = history.last
    epoch = (f", epoch {last['epoch'] + 1} of {config.epochs}") if last else ""
    lines = [f"The run made {history.steps:,} steps{epoch}, of {config.global_batch_size:,} images each. {_ended(status)}"]
    if last:
        lines[0] += f" The last loss is {last['loss']:.4f}; ln K is {last['ln_k']:.4f}."
    if history.probes:
        best, newest = max(history.probes, key=lambda row: row["probe/top1"]), history.probes[-1]
        lines.append(
            f"The linear probe on held-out training images gives {_score(newest)} after epoch {newest['epochs_done']}."
        )
        if best["probe/top1"] > newest["probe/top1"] + newest.get("probe/top1_stderr", 0.0):
            lines[-1] += f" It was higher once: {_score(best)} after epoch {best['epochs_done']}."
    kinds = [event["event"] for event in history.events]
    spread = f"{history.fewest} to {history.most} workers" if history.fewest < history.most else f"{history.most} workers"
    lives = max(1, kinds.count("start"))
    parts = [f"It was trained by {spread if history.most != 1 else 'one worker'}, started {_times(lives)}"]
    for kind, what in (("grow", "grew"), ("drain", "was preempted with notice"), ("lost", "lost workers without notice")):
        if kinds.count(kind):
            parts.append(f"{what} {_times(kinds.count(kind))}")
    still = sum(event["seconds_without_steps"] for event in history.events if event["event"] == "resumed")
    lines.append("; ".join(parts) + (f"; after these changes it stood still for {still:,.0f} s in all." if still else "."))
    if history.first_time is not None and last.get("time") is not None:
        first = f"{datetime.fromtimestamp(history.first_time, UTC):%Y-%m-%d %H:%M}"
        lines[-1] += f" First step {first}, last {datetime.fromtimestamp(last['time'], UTC):%Y-%m-%d %H:%M} UTC."
    return lines


def _ended(status: dict[str, Any] | None) -> str:
    if status is None:
        return "It is still running, or was killed: the same command goes on from its last checkpoint."
    if status["state"] == "done":
        return "It is done."
    if status["state"] == "stopped":
        return "It was asked to stop and did, all saved: the same command goes on."
    return f"It failed: {status.get('error', 'no reason recorded')}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _score(row: dict[str, Any]) -> str:
    return f"{row['probe/top1']:.4f} ± {row.get('probe/top1_stderr', 0.0):.4f}"


def _verdict(history: History) -> str:
    if not history.last:
        return f'<p class="none">{NO_STEP}</p>'
    last = history.last
    state = last["verdict"].replace("_", " ")
    kind = "good" if last["verdict"] in ("healthy", "warming_up") else "bad"
    lines = [f'<p class="verdict {kind}">{html.escape(state)}</p>']
    signs = (
        f"At step {last['step']:,}: {last['prototypes_in_use']:,} prototypes in use, entropy of the mean assignment "
        f"{last['assignment_entropy']:.2f} of ln K, spread of the embeddings {last['embedding_std']:.2f}, loss "
        f"{last['loss_share']:.3f} of ln K."
    )
    lines.append(f"<p>{html.escape(signs)}</p>")
    if last.get("advice"):
        lines.append(f"<p>What to try: {html.escape(last['advice'])}.</p>")
    if history.unwell:
        told = "; ".join(f"{verdict} from step {first:,} to {end:,}" for first, end, verdict in history.unwell[:5])
        more = f"; and {len(history.unwell) - 5} stretches more" if len(history.unwell) > 5 else ""
        lines.append(f"<p>{html.escape(f'Not well: {told}{more}.')}</p>")
    return "".join(lines)


def _events(history: History) -> str:
    rows = []
    for event in reversed(history.events[-MOST_ROWS:]):
        time = datetime.fromtimestamp(event["time"], UTC)
        rows.append([f"{time:%m-%d %H:%M:%S}", curves.words(event)])
    return table_html(["UTC", "event"], rows, caption_of="events")


def _events_caption(history: History) -> str:
    earlier = history.events_before + max(0, len(history.events) - MOST_ROWS)
    return "Newest first" + (f"; {earlier:,} earlier ones stand in events.jsonl." if earlier else ".")


def _seen(page: Page, uri: str, config: Config, images: int, tell: Said) -> None:
    """The sections of pictures, or why there are none."""
    sample, why = _sample(uri, config, images, tell)
    if sample is None:
        page.none("prototypes", "Prototypes", "", why)
        page.none("map", "Map of the features", "", why)
        return
    bad = f"; {sample.unreadable:,} more could not be read" if sample.unreadable else ""
    drawn = f"{len(sample.jpegs):,} of {sample.rows:,} training images, drawn by the run's seed{bad}"
    page.add(
        "prototypes",
        "Prototypes",
        f"The nearest images of some prototypes, from the most to the least frequent one, among {drawn}. A prototype that has "
        "learnt something shows images that look alike to a person too.",
        grids(sample),
    )
    page.plots(
        "map",
        "Map of the features",
        f"The backbone's features of these images in the plane of their two largest principal components: {drawn}. Classes "
        "were not used in training.",
        feature_map(sample),
    )


def _sample(uri: str, config: Config, images: int, tell: Said) -> tuple[Sample | None, str]:
    if not images:
        return None, "Left out: no images were to be looked at."
    try:
        config, model = load_model(uri)
    except UserError as error:
        return None, without_credentials(f"There are no weights to look through: {error}")
    tell(f"looking at {images:,} images of {without_credentials(config.data.train)}")
    try:
        sample = look(config, model, images)
    except (UserError, StorageAwayError) as error:
        return None, without_credentials(f"The training images are not at hand: {error}")
    except Exception as error:  # of a store's library, whose text may hold any part of an address
        name = type(error).__name__
        return None, without_credentials(f"The training images are not at hand: {config.data.train} cannot be read ({name})")
    if len(sample.jpegs) < 3:
        return None, "The training data has too few readable images."
    if not (sample.features_NF.isfinite().all() and sample.scores_NK.isfinite().all()):
        return None, "The weights hold values that are no numbers: the run diverged."
    return sample, ""


def _bad_caption(history: History) -> str:
    more = (
        f", the first {len(history.bad)} of them here; all in bad_images.jsonl" if history.bad_count > len(history.bad) else ""
    )
    return f"{history.bad_count:,} met in training and replaced by others{more}."


def _bad(history: History) -> str:
    rows = [[without_credentials(str(image["id"])), without_credentials(str(image["reason"]))] for image in history.bad]
    return table_html(["image", "reason"], rows, caption_of="bad")
