"""The method: torch only, knows nothing of Ray."""

from swav_ray.swav.feature_queue import FeatureQueue, cut_queue, gather_queue
from swav_ray.swav.loss import swav_loss
from swav_ray.swav.model import SwAV
from swav_ray.swav.optim import LARS, warmup_cosine
from swav_ray.swav.sinkhorn import sinkhorn

__all__ = ["LARS", "FeatureQueue", "SwAV", "cut_queue", "gather_queue", "sinkhorn", "swav_loss", "warmup_cosine"]
