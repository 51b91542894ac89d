"""What a backbone is worth: functions on features, without Ray."""

from swav_ray.evaluate.knn import knn, knn_grid
from swav_ray.evaluate.linear_probe import Score, linear_probe, mean_per_class
from swav_ray.evaluate.protocol import Protocol, load_protocol
from swav_ray.evaluate.subset import stratified

__all__ = ["Protocol", "Score", "knn", "knn_grid", "linear_probe", "load_protocol", "mean_per_class", "stratified"]
