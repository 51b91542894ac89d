"""All points of a finite space."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swav_ray.tune.space import Space

LARGEST_GRID = 10_000  # points; more are no sweep any more


def grid_points(space: Space) -> list[dict[str, Any]]:
    """Settings of each point that a trial can have and no whole baseline is, in an order drawn from the seed.

    Raises:
        ValueError: a param with no end of values, or more than LARGEST_GRID points.
    """
    order = space.order()
    for key in order:
        if space.params[key].finite() is None:
            raise ValueError(f"params.{key}: a grid needs a choice, an int, or a uniform with a step")
    points: list[dict[str, Any]] = []
    for count, point in enumerate(_product(space, order, {})):
        if count == LARGEST_GRID:
            raise ValueError(f"the grid has more than {LARGEST_GRID} points; take larger steps, or another sampler")
        if point not in space.baseline and space.refuses(point) is None:
            points.append(point)
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
