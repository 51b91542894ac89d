"""JSON schema of a sweep file, by which editors complete and check it as it is written.

``python -m swav_ray.tune.schema > search_spaces/space.schema.json``
"""

from __future__ import annotations

import json
import sys
from typing import Any

from swav_ray.config import known_keys
from swav_ray.tune.space import Space
from swav_ray.tune.space_check import FROM_RESOURCES, NOT_SWEPT, under


def schema() -> dict[str, Any]:
    """With every setting of the configuration that can be varied or overridden, and what it means."""
    found = Space.model_json_schema()
    entries = found["properties"]
    keys = known_keys()
    about = {key: {"description": field.description} if field.description else {} for key, field in keys.items()}
    entries["params"] |= {
        "properties": {key: {"$ref": "#/$defs/Param"} | about[key] for key in keys if not under(key, NOT_SWEPT)},
        "additionalProperties": False,
    }
    entries["overrides"] |= {
        "properties": {key: about[key] for key in keys if key not in FROM_RESOURCES},
        "additionalProperties": False,
    }
    kinds = found["$defs"]["Scheduler"]["properties"]["kind"]["enum"]
    entries["scheduler"] = {"anyOf": [{"enum": kinds}, {"$ref": "#/$defs/Scheduler"}], "default": "none"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | found


def schema_text() -> str:
    """:func:`schema` as the file holds it."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
