"""From shards to crops: a plan of the rows, a stream of blocks, keyed multi-crop."""

from swav_ray.data.plan import Plan

__all__ = ["Plan"]
