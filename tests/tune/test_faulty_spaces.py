"""A thousand spoilt space files: each is refused in one line that names the file and the line, and nothing is started."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from swav_ray.errors import UserError
from swav_ray.tune.space import load_space

SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
RICH: dict[str, Any] = {
    "name": "rich",
    "recipe": "demo-digits",
    "overrides": {"epochs": 12, "warmup_epochs": 2, "queue_start_epoch": 2},
    "objective": "probe/top1",
    "params": {
        "num_prototypes": {"logint": [20, 400]},
        "temperature": {"loguniform": [0.05, 0.3]},
        "queue_length": {"choice": [0, 128, 512], "ordered": True},
        "queue_start_epoch": {"int": [2, 4], "step": 2, "when": {"queue_length": [128, 512]}},
        "augment.rotation": {"uniform": [0, 20], "step": 5},
        "crop_counts": {"choice": [[2, 2], [2, 4]]},
    },
    "constraints": ["num_prototypes <= global_batch_size + queue_length", "epochs > warmup_epochs"],
    "baseline": [{"num_prototypes": 60, "queue_length": 0, "augment.rotation": 10}, {"temperature": 0.1}],
    "sampler": "tpe",
    "scheduler": {"kind": "asha", "first_rung": 5, "factor": 2},
    "seed": 3,
    "budget": {"trials": 20, "hours": 2},
    "concurrency": 2,
    "resources": {"workers": [1, 2], "cpus_per_worker": 1},
    "confirm": {"top_k": 2, "seeds": [1, 2, 3]},
}
Values = dict[str, Any]
Spoil = Callable[[random.Random, Values], None]


def misspelt(generator: random.Random, key: str) -> str:
    """A key that is none: a letter lost, doubled or exchanged, or the ending of a plural."""
    at = generator.randrange(len(key))
    return generator.choice([key[:at] + key[at + 1 :] + "x", key[:at] + key[at] + key[at:] + "q", f"{key}s", f"x{key}"])


def rename(values: Values, old: str, new: str) -> None:
    values[new] = values.pop(old)


def any_of(generator: random.Random, values: Values) -> str:
    return generator.choice(list(values))


def a_range(generator: random.Random, values: Values) -> tuple[Values, str]:
    """A param that is a range (added where there is none), and which kind."""
    found = [(p, kind) for p in values["params"].values() for kind in ("int", "logint", "uniform", "loguniform") if kind in p]
    if not found:
        values["params"]["temperature"] = {"loguniform": [0.05, 0.3]}
        return values["params"]["temperature"], "loguniform"
    return generator.choice(found)


def top_level_key(g: random.Random, v: Values) -> None:
    key = any_of(g, v)
    rename(v, key, misspelt(g, key))


def section_key(g: random.Random, v: Values) -> None:
    section = v[g.choice([key for key in ("budget", "resources", "confirm") if v.get(key)])]
    key = any_of(g, section)
    rename(section, key, misspelt(g, key))


def setting(g: random.Random, v: Values) -> None:
    section = v[g.choice(["params", "overrides"])]
    key = any_of(g, section)
    rename(section, key, misspelt(g, key))


def kind_of_param(g: random.Random, v: Values) -> None:
    param = v["params"][any_of(g, v["params"])]
    key = any_of(g, param)
    rename(param, key, misspelt(g, key))


def type_of_entry(g: random.Random, v: Values) -> None:
    wrong = {"name": [3], "recipe": {}, "overrides": 3, "params": [1], "baseline": {"a": 1}, "seed": "many", "budget": 8}
    wrong |= {"concurrency": [2], "resources": "all", "confirm": 3, "constraints": {"a": 1}, "scheduler": 4, "objective": 2}
    key = g.choice(list(wrong))
    v[key] = wrong[key]


def type_of_ends(g: random.Random, v: Values) -> None:
    param, kind = a_range(g, v)
    param[kind] = g.choice(["many", 3, None, {"from": 1}, [1], [1, 2, 3], ["a", "b"], [[1], [2]], [None, None], []])


def order_of_ends(g: random.Random, v: Values) -> None:
    param, kind = a_range(g, v)
    param.pop("step", None)
    param[kind] = g.choice([param[kind][::-1], [param[kind][0]] * 2])


def two_kinds(g: random.Random, v: Values) -> None:
    param = v["params"][any_of(g, v["params"])]
    param.update({"choice": [1, 2], "uniform": [0, 1]} if g.random() < 0.5 else {"int": [1, 2], "loguniform": [1, 2]})


def range_of_setting(g: random.Random, v: Values) -> None:
    v["params"] |= g.choice(
        [
            {"epsilon": {"uniform": [0, 1]}},
            {"augment.flip": {"uniform": [0.5, 1.5]}},
            {"momentum": {"choice": [0.9, 1.0]}},
            {"sinkhorn_iterations": {"int": [0, 3]}},
            {"optimizer": {"choice": ["lars", "adam"]}},
            {"hidden_dim": {"choice": [64, "wide"]}},
            {"weight_decay": {"uniform": [-0.1, 0.1]}},
            {"feature_dim": {"uniform": [16.5, 32.5]}},
            {"crop_sizes": {"choice": [[28, 20], [28]]}},
            {"base_lr": {"loguniform": [0, 1]}},
            {"base_lr": {"choice": [float("nan")]}},
        ]
    )


def step(g: random.Random, v: Values) -> None:
    param, kind = a_range(g, v)
    param["step"] = g.choice([0, -1, 1e9, "wide", [1]] if not kind.startswith("log") else [1, 0, 0.5])


def condition(g: random.Random, v: Values) -> None:
    key, other = g.choice([("momentum", "optimiser"), ("momentum", "momentum"), ("momentum", "seed"), ("momentum", "epochs")])
    v["params"]["momentum"] = {"uniform": [0, 0.9], "when": {other: g.choice([[], 99, ["a"], None])}}
    if other == "seed":
        v["params"]["seed"] = {"int": [0, 9]}
    if g.random() < 0.2:
        v["params"][key]["when"] = g.choice([3, "queue_length", [1]])


def constraint(g: random.Random, v: Values) -> None:
    texts = [
        "epochs",
        "epoch > 2",
        "epochs >",
        "epochs = 3",
        "2 > 1",
        "abs(epochs) > 2",
        "epochs ** 2 > 1",
        "crop_sizes > 3",
        "",
    ]
    texts += [
        "epochs > 'a'",
        "import os",
        "num_prototypes > 1e9",
        "data > 3",
        "epochs > 2 and epochs < 5",
        "epochs in (1, 2)",
        "(" * 99,
    ]
    v["constraints"] = [*v.get("constraints", []), g.choice(texts)]


def baseline(g: random.Random, v: Values) -> None:
    key = any_of(g, v["params"])
    bad = [
        {key: 1e12},
        {key: "nowhere"},
        {key: [9, 9, 9]},
        {misspelt(g, key): 1},
        {"epochs": 3},
        {key: None},
        5,
        [1],
        {key: True},
    ]
    v["baseline"] = [*v.get("baseline", []), g.choice(bad)]


def number(g: random.Random, v: Values) -> None:
    section, key, value = g.choice(
        [
            ("budget", "trials", 0),
            ("budget", "hours", -1),
            ("budget", "gpu_hours", 0),
            ("confirm", "top_k", 0),
            ("confirm", "seeds", 0),
            ("confirm", "seeds", [1, 1]),
            ("resources", "workers", 0),
            ("resources", "workers", [3, 1]),
            ("resources", "workers", 999),
            ("resources", "cpus_per_worker", 0),
            ("resources", "gpus_per_worker", -1),
            ("resources", "cpus", 2),
        ]
    )
    v.setdefault(section, {})[key] = value


def ways(g: random.Random, v: Values) -> None:
    v |= g.choice(
        [
            {"sampler": "tree"},
            {
                "sampler": "cmaes",
                "params": {"crop_counts": {"choice": [[2, 2], [2, 4]]}, "seed": {"int": [1, 2]}},
                "baseline": [],
            },
            {"sampler": "grid", "params": {"temperature": {"uniform": [0.1, 0.2]}}, "baseline": []},
            {"sampler": "grid", "params": {"seed": {"int": [0, 10**6]}}, "baseline": []},
            {"objective": "loss"},
            {"objective": ["gpu_hours"]},
            {"objective": ["probe/top1", "gpu_hours"], "scheduler": "asha"},
            {"scheduler": "hyperband"},
            {"scheduler": {"kind": "asha", "first_rung": 1}},
            {"scheduler": {"kind": "asha", "first_rung": 500}},
            {"scheduler": {"kind": "median", "factor": 3}},
            {"study": "runs/study.db"},
            {"study": "postgres://me:secret@host/db"},
            {"study": {"url": 3}},
            {"recipe": "demo-digit"},
            {"recipe": "nowhere/at/all.yaml"},
        ]
    )


def not_to_vary(g: random.Random, v: Values) -> None:
    key = g.choice(["name", "storage", "data.train", "elastic.max", "checkpoint.keep_last", "probe.resize", "elastic.sizes"])
    v["params"][key] = {"choice": [1, 2]}


def override(g: random.Random, v: Values) -> None:
    free = [key for key, param in v["params"].items() if "when" not in param]
    v["overrides"] |= g.choice(
        [{g.choice(free): 1}, {"epochs": "abc"}, {"epochs": 0}, {"warmup_epochs": 99}, {"elastic.max": 2}, {"data": {}}]
    )


def left_out(g: random.Random, v: Values) -> None:
    key = g.choice(["name", "recipe", "params", "budget"])
    v.pop(key, None)
    if key == "budget":
        v["sampler"] = "tpe"


# --- of the text itself


def broken(generator: random.Random, text: str) -> str:
    """No YAML any more."""
    lines = text.splitlines()
    at = generator.randrange(1, len(lines))
    bad = generator.choice(
        ["\t- x", "a: b: c", "'unclosed", "[1, 2", "{a: 1", "*nowhere", "!!python/object:os.system x", "@x", "a: %b"]
    )
    return "\n".join([*lines[:at], bad, *lines[at:]])


def twice(generator: random.Random, text: str) -> str:
    """An entry once more, at its end or among the params."""
    if generator.random() < 0.5:
        return f"{text}\nname: again\n"
    return re.sub(
        r"^params:$", "params:\n  temperature: {uniform: [0.1, 0.2]}\n  temperature: {uniform: [0.1, 0.2]}", text, flags=re.M
    )


SPOIL: list[Spoil] = [top_level_key, section_key, setting, kind_of_param, type_of_entry, type_of_ends, order_of_ends, two_kinds]
SPOIL += [range_of_setting, step, condition, constraint, baseline, number, ways, not_to_vary, override, left_out]


def test_a_thousand_faulty_files_get_one_clear_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = random.Random(2026)
    good = [RICH, *(yaml.safe_load(path.read_text()) for path in SHIPPED)]
    file = Path("mine.yaml")
    kinds = Counter[str]()
    for count in range(1000):
        values = copy.deepcopy(good[count % len(good)])
        how = generator.choice([*SPOIL, broken, twice])
        if how in (broken, twice):
            text = how(generator, yaml.safe_dump(values, sort_keys=False, default_flow_style=None))  # type: ignore[call-arg,arg-type]
        else:
            how(generator, values)  # type: ignore[arg-type]
            text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
        file.write_text(text)
        try:
            load_space(file)
        except UserError as error:
            message = str(error)
        else:
            pytest.fail(f"{how.__name__}: was taken\n{text}")
        told = f"{how.__name__}: {message}\n{text}"
        assert len(message.splitlines()) == 1 and message.isprintable(), told
        assert "secret" not in message and len(message) < 700, told
        place = re.match(r"mine\.yaml(:\d+)?: (?=\S)", message)
        assert place, told
        missing = " is missing" in message or message.startswith("mine.yaml: budget needs")
        assert place[1] or missing, told
        assert not place[1] or 1 <= int(place[1][1:]) <= len(text.splitlines()) + 1, told
        kinds[how.__name__] += 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert len(kinds) == len(SPOIL) + 2 and min(kinds.values()) > 20, kinds
