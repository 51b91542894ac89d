"""YAML files: numbers as users mean them, no key twice, and the line of every entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swav_ray.errors import UserError
from swav_ray.yaml_files import Lines, dump, parse, read_mapping

TEXT = """\
# a comment
name: mine
params:
  temperature:
    uniform: [0.1,
              0.3]
  "num_prototypes": {int: [3, 4]}
baseline:
  - {temperature: 0.1}

  - temperature: 0.2
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("params", "temperature"), 4),
        (("params", "temperature", "uniform", 1), 6),
        (("params", "num_prototypes", "int"), 7),
        (("params", "num_prototypes", "step"), 7),  # what is missing stands in the entry around it
        (("baseline", 0), 9),
        (("baseline", 1, "temperature"), 11),
    ],
)
def test_every_entry_knows_its_line(path: tuple[Any, ...], line: int, tmp_path: Path) -> None:
    file = written(tmp_path, TEXT)
    assert read_mapping(file)[1].place(path) == f"{file}:{line}"


def test_what_is_nowhere_has_no_line(tmp_path: Path) -> None:
    file = written(tmp_path, TEXT)
    assert read_mapping(file)[1].place(("budget",)) == read_mapping(file)[1].place(()) == str(file)
    assert Lines("recipe demo-digits").place(("epochs",)) == "recipe demo-digits"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: a stands twice, first in line 1"),
        ("data:\n  train: x\n  train: y\n", ":3: data.train stands twice, first in line 2"),
        ("a: 1\nb: [1, 2\nc: 3\n", ":3: not valid YAML: "),
    ],
)
def test_a_mistake_names_its_line(text: str, said: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_mapping(file)
    assert str(caught.value).startswith(f"{file}{said}")


def test_a_syntax_error_does_not_print_the_text(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_mapping(written(tmp_path, "study: postgresql://me:secret@host/db: x\n"))
    assert "secret" not in str(caught.value) and "mine.yaml:1: not valid YAML" in str(caught.value)


def test_aliases_to_themselves_and_to_many_are_read_once(tmp_path: Path) -> None:
    layers = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 9))
    values, lines = read_mapping(written(tmp_path, f"x0: &x0 [1]\n{layers}me: &me {{again: *me}}\n"))
    assert len(values) == 10 and lines.place(("me", "again", "again")).endswith(":10")


@pytest.mark.parametrize("value", ["1e-3", "1e3", "-2E+5", "12", "null", "yes", "1.5", "2001-01-01"])
def test_text_that_looks_like_something_else_survives(value: str) -> None:
    assert parse(dump({"a": value})) == {"a": value}


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("-1E3", -1000.0), ("1.5e2", 150.0), ("1e", "1e"), ("e3", "e3")])
def test_powers_of_ten_are_numbers(text: str, value: Any) -> None:
    assert parse(text) == value
