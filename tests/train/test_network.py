"""Gloo talks over the network by which Ray knows the node."""

from __future__ import annotations

import os

from swav_ray.train.network import GLOO, interface_of, talk_over


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") == ""


def test_gloo_is_told_unless_the_user_was_first(monkeypatch) -> None:
    monkeypatch.delenv(GLOO, raising=False)
    talk_over("203.0.113.9")
    assert GLOO not in os.environ
    monkeypatch.setenv(GLOO, "mine")
    talk_over("127.0.0.1")
    assert os.environ[GLOO] == "mine"
    monkeypatch.setenv(GLOO, "")
    talk_over("127.0.0.1")
    assert os.environ[GLOO] == "lo"
