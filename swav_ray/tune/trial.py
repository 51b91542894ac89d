"""One trial as Ray Tune runs it: a run in the trial's own process, or a nested elastic run of several workers."""

from __future__ import annotations

import json
from typing import Any

from ray import tune

from swav_ray.config import Config
from swav_ray.data.storage import Storage

BEAT_SECONDS = 1.0  # a step of Ray Tune's lasts so long at most, so that a stop is heard soon
LIVES = 4  # starts in a row from the same checkpoint before a trial that kills its process is given up
LIVES_FILE = "lives.json"


class SweepTrial(tune.Trainable):
    """Trains one configuration; each of Ray Tune's steps returns the next row of the run, or a sign of life.

    Ray Tune's config of a trial is a task: ``number``, ``settings``, the whole ``config``, the ``session`` of the driver,
    ``faults`` to strike, ``nested`` for a run of several workers, and ``test`` if the run is scored on the test data at its
    end. A run of this trial begun before goes on from its checkpoint,
    whatever killed it. The process serves one trial after another.
    """

    def __repr__(self) -> str:  # what the dashboard and the logs call it
        return f"SweepTrial({self._sweep})"

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._error:
            return {"done": True, "error": self._error}
        self._run.go_on()
        row = self._run.next_row(BEAT_SECONDS)
        return {"beat": True, **self._run.latest} if row is None else dict(row)

    def cleanup(self) -> None:
        self._end()

    def _begin(self, task: dict[str, Any]) -> None:
        from swav_ray.train.faults import Faults
        from swav_ray.tune.local_run import LocalRun
        from swav_ray.tune.nested_run import NestedRun

        config = Config.model_validate(task["config"])
        run = Storage(config.storage) / config.name
        self._sweep = config.storage.removesuffix("/trials").rpartition("/")[2]
        self._error = count_life(run, task["session"])
        self._run: Any = None
        if not self._error:
            finish = score_on_test if task["test"] else None
            if task["nested"]:
                self._run = NestedRun(config, run.uri, finish)
            else:
                self._run = LocalRun(config, finish, Faults.from_json(task["faults"]).of_run(run))

    def _end(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None


def count_life(run: Storage, session: str) -> str:
    """Note a start of ``run`` by the driver's ``session``; why it should not start, if its processes always die."""
    from swav_ray.train.checkpoint import Checkpoints
    from swav_ray.tune.local_run import ERROR_FILE

    found = Checkpoints(run / "checkpoints").newest()
    start = {"session": session, "step": int(found[1]["step"]) if found is not None else 0}
    try:
        before = json.loads(run.read(LIVES_FILE))
    except (FileNotFoundError, ValueError):
        before = {}
    count = before.get("count", 0) + 1 if {key: before.get(key) for key in start} == start else 1
    run.write(LIVES_FILE, json.dumps(start | {"count": count}).encode())
    if count <= LIVES:
        return ""
    try:
        why = run.read(ERROR_FILE).decode().strip().splitlines()[-1]
    except (FileNotFoundError, IndexError):
        why = "killed without a word, as when memory runs out: lower the batch or the model"
    return f"it failed {LIVES} times in a row after step {start['step']}; the last time: {why}"


def score_on_test(config: Config, backbone: Any) -> dict[str, Any]:
    """The backbone's linear probe on the test data, and which images it gets right, in the run's folder."""
    from swav_ray.train.scoring import probe_on_test

    score = probe_on_test(config, backbone)
    hits = "".join("1" if hit else "0" for hit in score.hits_N.tolist())
    (Storage(config.storage) / config.name).write("test_hits.txt", hits.encode())
    return {"test/top1": score.top1, "test/top1_stderr": score.top1_stderr, "test/rows": score.num_test}
