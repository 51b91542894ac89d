"""What a backbone is worth: functions on features, without Ray."""

from swav_ray.evaluate.knn import knn
from swav_ray.evaluate.linear_probe import Score, linear_probe

__all__ = ["Score", "knn", "linear_probe"]
