"""The stream: any workers from any row on see the plan's rows in order, with the same crops.

Here blocks are made in this process; test_stream_on_ray.py has them made on a Ray cluster.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.data import ray_tasks
from swav_ray.data import stream as stream_module
from swav_ray.data.ahead import in_threads
from swav_ray.data.multicrop import Crops
from swav_ray.data.ray_tasks import by_step, from_table, hands, tables, to_table
from swav_ray.data.shards import Shards
from swav_ray.data.stream import Batch, Block, Cropped, Position, Span, Stream
from tests.data.small import ROWS, small_config, write_small_shards


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_small_shards(folder)
    return str(folder)


class WithoutCrops(Stream):
    """For tests of the order alone."""

    def crop_block(self, block: Block, crops: Crops, at: int) -> list[tuple[str, str]]:
        return []


def join(batches: list[Batch]) -> tuple[list[str], list[np.ndarray]]:
    """The global batch of a step from its workers' parts: ids and crops in the order of the plan."""
    assert len({(b.epoch, b.step, b.global_rows, b.largest_share, b.next) for b in batches}) == 1
    assert batches[0].largest_share == max(len(batch.ids) for batch in batches)
    positions = np.concatenate([batch.positions for batch in batches])
    order = np.argsort(positions)
    assert positions[order].tolist() == list(range(batches[0].global_rows))
    ids = [identifier for batch in batches for identifier in batch.ids]
    crops = [np.concatenate(groups, axis=1)[:, order] for groups in zip(*(batch.crops for batch in batches), strict=True)]
    return [ids[row] for row in order], crops


def plan_ids(stream: Stream, epoch: int, start: int = 0) -> list[str]:
    """What the plan says, read the plainest way."""
    ids = [table.column("id").to_pylist() for table in Shards(stream.config.data.train).iter_groups(["id"])]
    return [ids[group][row] for block in stream.plan.blocks(epoch, start) for group, row in block]


def assert_same_steps(got: list[list[Batch]], expected: list[Batch]) -> None:
    """``got``: the batches of each worker."""
    assert {len(batches) for batches in got} == {len(expected)}
    for parts, whole in zip(zip(*got, strict=True), expected, strict=True):
        ids, crops = join(list(parts))
        assert (ids, parts[0].next) == (whole.ids, whole.next)
        for group, whole_group in zip(crops, whole.crops, strict=True):
            np.testing.assert_array_equal(group, whole_group)


def test_one_worker_sees_the_plan(uri: str) -> None:
    stream = Stream(small_config(uri))
    batches = list(stream.local(Position()))
    assert [(b.epoch, b.step) for b in batches] == [(epoch, step) for epoch in range(2) for step in range(9)]
    for epoch in range(2):
        assert [i for b in batches if b.epoch == epoch for i in b.ids] == plan_ids(stream, epoch)
    assert [b.next for b in batches[:-1]] == [Position(b.epoch, stream.steps.start(b.step)) for b in batches[1:]]
    assert batches[-1].next == Position(2, 0)
    for b in batches:
        assert [(group.shape, group.dtype) for group in b.crops] == [
            ((1, b.global_rows, 12, 12, 3), np.uint8),
            ((2, b.global_rows, 8, 8, 3), np.uint8),
        ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("start", [(0, 0), (0, 4), (1, 8), (2, 0)], ids=str)
def test_any_workers_from_any_step_see_the_same(uri: str, world_size: int, start: tuple[int, int]) -> None:
    stream = Stream(small_config(uri))
    position = Position(start[0], stream.steps.start(start[1]))
    whole = list(stream.local(Position()))[start[0] * 9 + start[1] :]
    assert_same_steps([list(stream.local(position, rank, world_size)) for rank in range(world_size)], whole)


def test_a_worker_with_more_processors_crops_the_same(uri: str) -> None:
    one = list(Stream(small_config(uri)).local(Position()))
    config = small_config(uri)
    more = config.model_copy(update={"elastic": config.elastic.model_copy(update={"cpus_per_worker": 3.5})})
    assert_same_steps([list(Stream(more).local(Position()))], one)


def test_threads_work_side_by_side_in_order_and_not_far_ahead() -> None:
    taken: list[int] = []
    meet = threading.Barrier(2, timeout=60)

    def double(number: int) -> int:
        meet.wait()  # passed by two at a time only
        return 2 * number

    results = in_threads(double, (taken.append(n) or n for n in range(40)), threads=2)  # type: ignore[func-returns-value]
    assert next(results) == 0
    assert len(taken) == 5
    assert list(results) == [2 * n for n in range(1, 40)]


def test_workers_share_the_rows_evenly(uri: str) -> None:
    stream = WithoutCrops(small_config(uri))
    rows = [sum(len(batch.ids) for batch in stream.local(Position(), rank, 3)) for rank in range(3)]
    assert sum(rows) == 2 * ROWS
    assert max(rows) - min(rows) <= 2 * stream.config.data.block_rows


def test_a_worker_without_a_block_gets_an_empty_batch(tmp_path: Path) -> None:
    write_small_shards(tmp_path, rows=7)
    stream = Stream(small_config(str(tmp_path), epochs=1, data={"block_rows": 4}))
    parts = [list(stream.local(Position(), rank, 3)) for rank in range(3)]
    assert [len(batches[0].ids) for batches in parts] == [3, 4, 0]
    assert [group.shape for group in parts[2][0].crops] == [(1, 0, 12, 12, 3), (2, 0, 8, 8, 3)]
    assert sorted(join([batches[0] for batches in parts])[0]) == sorted(plan_ids(stream, 0))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    legs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), max_size=6),
    batch=st.integers(30, 90),
    block_rows=st.integers(3, 17),
    window_groups=st.integers(1, 4),
)
def test_any_stops_and_worker_counts_see_every_row_once(
    uri: str, legs: list[tuple[int, int]], batch: int, block_rows: int, window_groups: int
) -> None:
    """A run that is stopped after any steps and goes on with any number of workers, to its end with two."""
    data = {"block_rows": block_rows, "window_groups": window_groups}
    stream = WithoutCrops(small_config(uri, global_batch_size=batch, data=data))
    position, seen = Position(), {0: [], 1: []}
    for world_size, steps in [*legs, (2, 1000)]:
        workers = [stream.local(position, rank, world_size) for rank in range(world_size)]
        for parts in itertools.islice(zip(*workers, strict=True), steps):
            assert Position(parts[0].epoch, len(seen[parts[0].epoch])) == position
            seen[parts[0].epoch] += join(list(parts))[0]
            position = parts[0].next
        for worker in workers:
            worker.close()
    assert position == Position(2, 0)
    assert [seen[epoch] for epoch in range(2)] == [plan_ids(stream, epoch) for epoch in range(2)]


@settings(derandomize=True, deadline=None, max_examples=25)
@given(legs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 7)), max_size=6), batch=st.integers(30, 90))
def test_any_stops_with_a_batch_that_follows_the_workers_see_every_row_once(
    uri: str, legs: list[tuple[int, int]], batch: int
) -> None:
    """Each change of the worker count changes the batch, and the rest of the epoch is cut anew."""
    elastic = {"max": 4, "scale_lr_with_batch": True}
    stream = WithoutCrops(small_config(uri, global_batch_size=batch, elastic=elastic))
    position, seen = Position(), {0: [], 1: []}
    for world_size, steps in [*legs, (2, 1000)]:
        workers = [stream.local(position, rank, world_size) for rank in range(world_size)]
        for parts in itertools.islice(zip(*workers, strict=True), steps):
            rows = parts[0].global_rows
            left = ROWS - len(seen[parts[0].epoch])
            assert rows <= round(batch * world_size / 4) and (rows >= round(batch * world_size / 4) // 2 or rows == left)
            seen[parts[0].epoch] += join(list(parts))[0]
            position = parts[0].next
        for worker in workers:
            worker.close()
    assert position == Position(2, 0)
    assert [seen[epoch] for epoch in range(2)] == [plan_ids(stream, epoch) for epoch in range(2)]


def test_a_stop_changes_nothing_where_the_workers_stay(uri: str) -> None:
    """A batch that follows the workers, from every step of a run of three on."""
    stream = WithoutCrops(small_config(uri, elastic={"max": 4, "scale_lr_with_batch": True}))
    whole = list(stream.local(Position(), 0, 3))
    assert len(whole) == 2 * 12  # 331 rows in steps of at most 30
    for index in range(len(whole) - 1):
        rest = list(stream.local(whole[index].next, 0, 3))
        assert [(b.epoch, b.ids, b.next) for b in rest] == [(b.epoch, b.ids, b.next) for b in whole[index + 1 :]]


def test_a_position_within_a_step_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="no step begins at row 5"):
        list(Stream(small_config(uri)).local(Position(0, 5)))


def groups_of(windows: Iterable[np.ndarray]) -> list[int]:
    return [int(group) for pairs in windows for group in np.unique(pairs[:, 0])]


def note_reads(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read from now on."""
    read, real = [], stream.shards.read_group
    monkeypatch.setattr(stream.shards, "read_group", lambda group, columns: (read.append(group), real(group, columns))[1])
    return read


def test_row_groups_are_read_once_and_one_window_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_shards(tmp_path, rows=64 * 20)
    stream = Stream(small_config(str(tmp_path)))
    read, due = note_reads(stream, monkeypatch), [w.pairs for w in stream.plan.windows(0)]
    for block in stream.read(Span(0, stream.steps, 0, stream.steps.per_epoch)):
        end = stream.steps.start(block.step) + block.positions.stop
        used = sum(sum(map(len, due[:n])) < end for n in range(len(due)))
        assert set(groups_of(due[:used])) <= set(read) <= set(groups_of(due[: used + 1]))
    assert sorted(read) == sorted(groups_of(due))


def test_a_span_reads_its_own_rows_only(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its ends lie amid windows."""
    stream = Stream(small_config(uri))
    read = note_reads(stream, monkeypatch)
    begin, end = stream.steps.start(2), stream.steps.start(5)
    ids = [identifier for block in stream.read(Span(1, stream.steps, 2, 5)) for identifier in block.ids]
    assert ids == plan_ids(stream, 1)[begin:end]
    assert sorted(read) == sorted(groups_of(w.pairs[: end - w.start] for w in stream.plan.windows(1, begin) if w.start < end))


# The Ray way, with Ray's part (deal each leg's blocks in turn) played by a list.


class FakeIterator:
    """One worker's share of a leg, as Ray Data hands it over."""

    def __init__(self, hands: list[list[Cropped]]) -> None:
        self.hands = hands

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        yield from map(to_table, self.hands)


def deal(stream: Stream, spans: list[tuple[Span, int]], world_size: int) -> list[FakeIterator]:
    dealt = [hand for span, before in spans for hand in hands(stream, span, before, world_size)]
    cropped = [list(stream.crop(by_step(hand))) for hand in dealt]
    return [FakeIterator(cropped[rank::world_size]) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_legs_and_spans_of_an_epoch_that_was_cut_anew(uri: str, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WINDOWS_PER_SPAN", 1)
    monkeypatch.setattr(stream_module, "SPANS_PER_LEG", 3)
    monkeypatch.setattr(stream_module, "ray_iterators", deal)
    stream = Stream(small_config(uri, elastic={"max": 4, "scale_lr_with_batch": True}))
    start = next(stream.local(Position(), 0, 4)).next  # after one step of four workers
    legs = list(stream.on_ray(start, world_size))
    for rank in range(world_size):
        got = list(stream.batches_of(start, [tables(leg[rank]) for leg in legs], rank, world_size))
        here = list(stream.local(start, rank, world_size))
        assert [(b.global_rows, b.ids) for b in got] == [(b.global_rows, b.ids) for b in here]
        assert sum(b.global_rows for b in got) == 2 * ROWS - start.row


@pytest.mark.parametrize("rows_per_task", [1, 12, 128])
@pytest.mark.parametrize("spans_per_leg", [1, 3, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_legs_and_spans_change_nothing(
    uri: str, world_size: int, spans_per_leg: int, rows_per_task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans end amid windows, legs amid epochs, and a leg's blocks are no multiple of the workers."""
    monkeypatch.setattr(ray_tasks, "ROWS_PER_TASK", rows_per_task)
    monkeypatch.setattr(stream_module, "WINDOWS_PER_SPAN", 1)
    monkeypatch.setattr(stream_module, "SPANS_PER_LEG", spans_per_leg)
    monkeypatch.setattr(stream_module, "ray_iterators", deal)
    stream = Stream(small_config(uri))
    start = Position(0, stream.steps.start(2))
    legs = list(stream.on_ray(start, world_size))
    assert len(legs) == -(-5 // spans_per_leg)  # 4-step spans: the 7 steps left are 2 spans, the next epoch's 9 are 3
    got = [list(stream.batches_of(start, [tables(leg[rank]) for leg in legs], rank, world_size)) for rank in range(world_size)]
    assert_same_steps(got, list(stream.local(start)))
    for rank in range(world_size):
        here = list(stream.local(start, rank, world_size))
        assert [batch.ids for batch in got[rank]] == [batch.ids for batch in here]


@pytest.mark.parametrize(("rows_per_task", "copied"), [(40, False), (10, True)])
def test_a_batch_that_comes_as_one_piece_is_not_copied(
    uri: str, rows_per_task: int, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tasks, "ROWS_PER_TASK", rows_per_task)
    monkeypatch.setattr(stream_module, "ray_iterators", deal)
    stream = WithoutCrops(small_config(uri, epochs=1))
    (leg,) = list(stream.on_ray(Position(), 1))
    for batch in stream.batches_of(Position(), [tables(leg[0])], 0, 1):
        assert {group.flags.writeable for group in batch.crops} == {copied}


def test_crops_are_not_copied_on_their_way_through_a_table(uri: str) -> None:
    stream = Stream(small_config(uri))
    pieces = list(stream.crop(by_step(stream.read(Span(0, stream.steps, 0, 2)))))
    for ours, theirs in zip(from_table(to_table(pieces)), pieces, strict=True):
        for group, sent in zip(ours.crops, theirs.crops, strict=True):
            np.testing.assert_array_equal(group, sent)
            assert group.ctypes.data == sent.ctypes.data


@pytest.mark.parametrize("crop_in", ["ray", "worker"])
def test_batches_lie_in_the_memory_they_are_wanted_in(uri: str, crop_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU wants them in pinned memory."""
    monkeypatch.setattr(stream_module, "ray_iterators", deal)
    stream, given = Stream(small_config(uri, epochs=1)), []
    expected = list(stream.local(Position()))

    def empty(shape: tuple[int, ...]) -> np.ndarray:
        given.append(np.empty(shape, dtype=np.uint8))
        return given[-1]

    stream.empty = empty
    if crop_in == "worker":
        batches = list(stream.local(Position()))
    else:
        (leg,) = list(Stream(stream.config).on_ray(Position(), 1))
        batches = list(stream.batches_of(Position(), [tables(leg[0])], 0, 1))
    assert_same_steps([batches], expected)
    assert len(given) == 2 * len(batches) and {id(g) for b in batches for g in b.crops} == {id(g) for g in given}


def test_the_next_leg_is_asked_for_in_the_consumers_thread(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers meet in a collective for it (`train/feed.py`), which may not run beside those of a step."""
    monkeypatch.setattr(stream_module, "WINDOWS_PER_SPAN", 1)
    monkeypatch.setattr(stream_module, "SPANS_PER_LEG", 1)
    monkeypatch.setattr(stream_module, "ray_iterators", deal)
    stream = WithoutCrops(small_config(uri))
    asked = []

    def legs() -> Iterator[Iterator[pa.Table]]:
        for leg in stream.on_ray(Position(), 2):
            asked.append(threading.current_thread())
            yield tables(leg[0])

    assert len(list(stream.batches_of(Position(), legs(), 0, 2))) == 18
    assert len(asked) > 2 and set(asked) == {threading.current_thread()}


def swapped(pieces: list[Cropped]) -> list[Cropped]:
    return [pieces[1], pieces[0], *pieces[2:]]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(swapped, id="two pieces swapped"),
        pytest.param(lambda pieces: pieces[1:], id="one lost"),
        pytest.param(lambda pieces: [pieces[0], *pieces], id="one twice"),
        pytest.param(lambda pieces: pieces[:-1], id="the last one lost"),
        pytest.param(lambda pieces: [dataclasses.replace(pieces[0], epoch=1), *pieces[1:]], id="of another epoch"),
        pytest.param(lambda pieces: [dataclasses.replace(pieces[0], step=1), *pieces[1:]], id="of another step"),
    ],
)
@pytest.mark.parametrize("whole_steps", [True, False])
def test_a_piece_out_of_step_is_refused(uri: str, damage: Callable[[list[Cropped]], list[Cropped]], whole_steps: bool) -> None:
    stream = WithoutCrops(small_config(uri, epochs=1))
    blocks = list(stream.read(Span(0, stream.steps, 0, 9)))
    pieces = list(stream.crop(by_step(blocks) if whole_steps else [[block] for block in blocks]))
    assert len(list(stream.batches_of(Position(), [tables(FakeIterator([pieces]))], 0, 1))) == 9
    with pytest.raises(RuntimeError, match="the data stream is out of step: expected"):
        list(stream.batches_of(Position(), [tables(FakeIterator([damage(pieces)]))], 0, 1))


# The reading thread.


def reading_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("swav-ray")}


def test_an_error_in_the_reading_thread_reaches_the_consumer(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = WithoutCrops(small_config(uri))
    real, gone = stream.shards.read_group, [w.pairs for w in stream.plan.windows(0)][2][0, 0]

    def read(group: int, columns: list[str]) -> pa.Table:
        if group == gone:
            raise OSError("the disc is gone")
        return real(group, columns)

    monkeypatch.setattr(stream.shards, "read_group", read)
    before, seen = reading_threads(), []
    with pytest.raises(OSError, match="the disc is gone"):
        for batch in stream.local(Position()):
            seen.append(batch.step)
    # Everything that was read before the error is handed over first.
    before_it = sum(len(w.pairs) for w in itertools.islice(stream.plan.windows(0), 2))
    assert seen == list(range(before_it * 9 // ROWS))
    for thread in reading_threads() - before:
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.mark.parametrize("taken", [1, 2])
def test_closing_early_ends_the_thread(uri: str, taken: int) -> None:
    before = reading_threads()
    batches = WithoutCrops(small_config(uri, epochs=10**6)).local(Position())
    for _ in range(taken):
        next(batches)
    threads = reading_threads() - before
    assert len(threads) > 1  # one reads, others crop
    batches.close()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_stream_that_is_never_read_starts_no_thread(uri: str) -> None:
    before = reading_threads()
    Stream(small_config(uri)).local(Position())
    assert reading_threads() == before


def test_a_pickled_stream_is_small_and_streams_the_same(uri: str) -> None:
    stream = Stream(small_config(uri))
    first = next(stream.local(Position()))
    content = pickle.dumps(stream)
    assert len(content) < len(pickle.dumps(stream.config)) + 200  # nothing that grows with the data
    assert next(pickle.loads(content).local(Position())).ids == first.ids


def test_bad_images_are_reported_by_the_worker_that_got_them(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(small_config(uri, epochs=1))
    real, broken = stream.shards.read_group, {"image-0007", "image-0200"}
    bad = set(broken)

    def read(group: int, columns: list[str]) -> pa.Table:
        rows = real(group, columns).to_pylist()
        return pa.Table.from_pylist([row | ({"jpeg": b"broken"} if row["id"] in broken else {}) for row in rows])

    monkeypatch.setattr(stream.shards, "read_group", read)
    for rank in range(2):
        for batch in stream.local(Position(), rank, 2):
            assert batch.bad == [(identifier, "not an image") for identifier in batch.ids if identifier in bad]
            bad -= {identifier for identifier, _ in batch.bad}
    assert not bad
