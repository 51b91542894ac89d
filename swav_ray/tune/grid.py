"""All points of a finite space."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swav_ray.tune.space import Space

LARGEST_GRID = 10_000  # points; more are no sweep any more


def grid_points(space: Space) -> list[dict[str, Any]]:
    """Settings of each point that a trial can have and no whole baseline is, in an order drawn from the seed.

    Raises:
        ValueError: more than LARGEST_GRID points.
    """
    order = space.order()
    points = list(itertools.islice(_product(space, order, {}), LARGEST_GRID + 1))
    if len(points) > LARGEST_GRID:
        raise ValueError(f"the grid has more than {LARGEST_GRID:,} points; take larger steps, or another sampler")
    points = [point for point in points if point not in space.baseline and space.refuses(point) is None]
    random.Random(space.seed).shuffle(points)
    return points


def _product(space: Space, order: list[str], point: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if len(order) == 0:
        yield point
        return
    key, *rest = order
    if not space.active(key, point):
        yield from _product(space, rest, point)
        return
    for value in space.params[key].finite() or []:
        yield from _product(space, rest, point | {key: value})
