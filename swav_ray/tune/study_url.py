"""The address of a sweep's study in a database; its password is never shown, in no error either."""

from __future__ import annotations

import re
from typing import Any

from swav_ray.errors import did_you_mean

PACKAGES = {"sqlite": "", "postgresql": "psycopg2-binary", "mysql": "pymysql"}


def redacted(url: str) -> str:
    """The address without password and without what follows a question mark, which may hold one."""
    return re.sub(r"://([^/@:]*):.*@", r"://\1:***@", url.split("?", 1)[0])


def check_study_url(value: Any) -> Any:
    """The address, if a study can be kept there.

    Raises:
        ValueError: it is no such address, or the package that speaks to the database is missing; without the password.
    """
    if value is None:
        return None
    known = ", ".join(f"{name}://..." for name in PACKAGES)
    if not isinstance(value, str):
        raise ValueError(f"needs the address of a database ({known}), or null for a journal in the sweep's folder")
    kind = value.partition("://")[0].partition("+")[0]
    if "://" not in value or kind not in PACKAGES:
        near = did_you_mean(kind, PACKAGES) if "://" in value else ""
        raise ValueError(f"is no address of a database{near}; write one of {known}, or null for a journal")
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(value).get_dialect().import_dbapi()
    except (ArgumentError, ValueError):
        raise ValueError(f"{redacted(value)!r} cannot be read; write {kind}://USER:PASSWORD@HOST:PORT/DATABASE") from None
    except (ImportError, NoSuchModuleError) as error:
        raise ValueError(f"{redacted(value)!r}: {error}; pip install {PACKAGES[kind]}") from None
    return value
