"""The memory of a sweep: an Optuna study, in a journal file of the sweep's folder or in a database.

The study is the truth. A sweep that is run again reads it: finished trials stay, those that were running go on under
their own number, new ones are sampled. Ray Tune's own state is never restored.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError

JOURNAL = "study.journal"
Direction = Literal["minimize", "maximize"]
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class SweepFolder:
    """The folder of a sweep, local or S3, held by one driver at a time where it is local.

    On S3 the journal is worked on in a local copy; :meth:`keep` puts it back after each change that matters.

    Raises:
        UserError: another process runs a sweep in this folder.
    """

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)
        self.local = Path(tempfile.mkdtemp(prefix="swav-ray-") if self.storage.is_s3 else self.storage.root)
        self.local.mkdir(parents=True, exist_ok=True)
        self._lock: TextIO | None = None
        if not self.storage.is_s3:
            self._lock = (self.local / ".lock").open("a+")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.seek(0)
                who = self._lock.read().strip() or "?"
                raise UserError(f"{uri}: process {who} is running this sweep; wait for it, or end it first") from None
            self._lock.truncate(0)
            self._lock.write(str(os.getpid()))
            self._lock.flush()

    def journal(self, name: str = JOURNAL) -> BaseStorage:
        """Optuna's storage on a journal of this folder."""
        path = self.local / name
        if self.storage.is_s3 and self.storage.exists(name):
            path.write_bytes(self.storage.read(name))
        for stale in self.local.glob(f"{name}.lock*"):  # of a driver that was killed while it wrote: we hold the folder
            stale.unlink()
        _drop_half_line(path)
        return JournalStorage(JournalFileBackend(str(path)))

    def keep(self, name: str) -> None:
        """Put a local file (or all files of a local folder) where it lasts."""
        if self.storage.is_s3 and (self.local / name).exists():
            self.storage.put(self.local / name, name)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


def _drop_half_line(journal: Path) -> None:
    """Cut off the entry that a crash or a full disk left unfinished; Optuna would write its next one onto the same line."""
    content = journal.read_bytes() if journal.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


def open_study(
    storage: BaseStorage | str, name: str, directions: Sequence[Direction], defining: dict[str, Any]
) -> optuna.Study:
    """The study of a sweep, new or one of the same definition.

    Args:
        storage: a journal's, or the URL of a database.
        defining: what makes it the same sweep; kept in the study.

    Raises:
        UserError: the storage holds a study of that name with another definition, or the database does not answer.
    """
    from swav_ray.tune.space import difference

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if isinstance(storage, str):
        storage = _database(storage)
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    known = study.user_attrs.get("space")
    if known is None:
        study.set_user_attr("space", defining)
    elif known != defining:
        raise UserError(
            f"sweep {name!r} exists with another definition: {difference(known, defining)}; give the space another name, or "
            "delete the old sweep's folder"
        )
    return study


def _database(url: str) -> RDBStorage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return RDBStorage(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        shown = make_url(url).render_as_string(hide_password=True) if "://" in url else url
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"study: {shown} cannot be opened: {lines[0]}") from None
