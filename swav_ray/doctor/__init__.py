"""`swav-ray doctor`: what this machine or cluster lacks for a run, and how to mend it."""

from __future__ import annotations

from swav_ray.doctor.check import Check, State
from swav_ray.doctor.examine import Questions, Report, examine_cluster, examine_machine, turned_away

__all__ = ["Check", "Questions", "Report", "State", "examine_cluster", "examine_machine", "turned_away"]
