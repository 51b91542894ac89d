"""The plain words: what was found, against what, and whether the difference is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swav_ray.tune.findings import apart, findings
from swav_ray.tune.results import results
from tests.tune.studies import BASELINES, make_space, open_journal, trial


def words(folder: Path, trials: list[tuple[str, float, dict[str, Any]]], baselines: Any = BASELINES, **space: Any) -> str:
    made = make_space(**space)
    study = open_journal(made, folder)
    for number, (kind, value, attrs) in enumerate(trials):
        study.add_trial(trial(made, number, kind, value=value, **attrs))
    return "\n".join(findings(results(study, made), made, baselines))


def test_the_difference_is_in_standard_errors_of_the_difference(tmp_path: Path) -> None:
    made = make_space()
    study = open_journal(made, tmp_path)
    for number, (value, stderr) in enumerate([(0.95, 0.03), (0.9, 0.04), (0.9, None)]):
        study.add_trial(trial(made, number, "C", value=value, top1_stderr=stderr, rungs={}))
    one, two, unknown = results(study, made)
    assert apart(one, two) == pytest.approx(1.0)  # 0.05 / sqrt(0.03^2 + 0.04^2)
    assert apart(two, one) == pytest.approx(-1.0) and apart(one, unknown) is None


def test_a_clear_winner(tmp_path: Path) -> None:
    text = words(tmp_path, [("C", 0.93, {}), ("C", 0.97, {}), ("C", 0.94, {})])
    assert "The best configuration so far is trial 1: num_prototypes" in text
    assert "linear-probe accuracy on held-out training images is 0.9700 ± 0.0080" in text
    assert "The runner-up is trial 2 with 0.9400 ± 0.0080: +0.0300, 2.7 standard errors of the difference." in text
    assert "Against the baseline (trial 0, 0.9300 ± 0.0080): +0.0400, 3.5 standard errors of the difference." in text
    assert "0.8200 on random init and 0.9100 on raw 16x16 pixels" in text
    assert "cannot be told apart" not in text and "Of 3 trials, 3 ran to the end." in text
    assert "swav-ray tune confirm SPACE" in text and "flatters it a little" in text


def test_what_cannot_be_told_apart_is_said(tmp_path: Path) -> None:
    text = words(tmp_path, [("C", 0.951, {}), ("C", 0.96, {}), ("C", 0.955, {}), ("C", 0.9, {})])
    assert text.count("cannot be told apart") == 2, "the runner-up and the baseline"
    assert "2 of the 3 other complete trials lie within 2 standard errors of the best." in text


def test_the_baseline_can_win_or_be_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert "no sampled configuration came out above it" in words(tmp_path / "a", [("C", 0.97, {}), ("C", 0.93, {})])
    text = words(tmp_path / "b", [("P", 0.8, {}), ("C", 0.93, {})])
    assert "The baseline (trial 0) was stopped early, so there is no gap to it." in text


def test_a_sweep_that_learnt_nothing_says_so(tmp_path: Path) -> None:
    assert "nothing shows that these runs have learnt" in words(tmp_path, [("C", 0.9, {}), ("C", 0.905, {})])


def test_what_was_stopped_and_what_failed_and_why(tmp_path: Path) -> None:
    sick = {"verdict": "collapsed", "ended": "collapsed: embeddings are one point"}
    trials: Any = [("C", 0.97, {}), ("P", 0.9, {}), ("P", 0.9, sick), ("P", 0.9, {}), ("R", 0.9, {})]
    trials += [("F", 0.0, {"error": "no space left"})] * 2 + [
        ("F", 0.0, {"error": f"reason {n} {'x' * 200}"}) for n in range(3)
    ]
    text = words(tmp_path, trials)
    assert "3 were stopped early (2 at a rung, where others were ahead, 1 as collapsed)." in text
    assert "5 failed: no space left (2 times); reason 0 x" in text and "xx...; reason 1" in text and "reason 2" not in text
    assert "1 is still running: this page is a snapshot." in text and "confirm" not in text


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ("", "No trial has been started."),
        ("R", "No trial has come to its end yet; 1 is still running."),
        ("FF", "No trial came to its end, so there is no best configuration."),
        ("C", "It is the only trial that ran to its end"),
        ("P", "1 was stopped early (1 at a rung, where others were ahead)"),
    ],
)
@pytest.mark.parametrize("objective", ["probe/top1", "knn/top1", ["probe/top1", "gpu_hours"]])
def test_a_small_sweep_has_sensible_words(kinds: str, said: str, objective: Any, tmp_path: Path) -> None:
    text = words(tmp_path, [(kind, 0.9, {}) for kind in kinds], objective=objective)
    assert said in text and "None" not in text and "nan" not in text.replace("the loss is nan", "")
