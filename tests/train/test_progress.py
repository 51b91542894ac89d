"""Words from the workers: of figures the newest, of ends of epochs every one."""

from __future__ import annotations

import threading

from swav_ray.train.progress import POLL_SECONDS, ProgressReader, post, post_epoch, read, take_epochs


def test_the_rows_of_epochs_wait_until_they_are_read_in_order_and_once(ray_cluster) -> None:
    for epoch in (9, 10, 11):
        post_epoch("a/run", {"epochs_done": epoch})
    post_epoch("a/run", {"epochs_done": 11, "again": True})  # after a loss
    post_epoch("a/run-2", {"epochs_done": 1})
    assert [row["epochs_done"] for row in take_epochs("a/run")] == [9, 10, 11] and take_epochs("a/run") == []
    assert len(take_epochs("a/run-2")) == 1, "another run's are left alone"


def test_a_reader_misses_no_epoch_and_leaves_nothing(ray_cluster) -> None:
    post("run", {"old": True})
    post_epoch("run", {"epochs_done": 7})  # of an earlier start
    shown, epochs, seen = [], [], threading.Event()

    def show(row: dict) -> None:
        shown.append(row)
        seen.set()

    with ProgressReader("run", show, epoch=lambda row: epochs.append(row["epochs_done"])):
        for epoch in range(1, 40):  # many between two looks
            post_epoch("run", {"epochs_done": epoch})
            post("run", {"step": epoch})
        assert seen.wait(20 * POLL_SECONDS)
        post_epoch("run", {"epochs_done": 40})
        post("run", {"step": 40})
    assert epochs == list(range(1, 41)) and shown[-1] == {"step": 40}
    assert read("run") is None and take_epochs("run") == []
