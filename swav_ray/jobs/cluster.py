"""Jobs of a cluster: a thin front for Ray's own client, whose errors become one line."""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swav_ray.errors import InfraError, UserError, without_credentials
from swav_ray.jobs.parcel import Parcel, write_zip
from swav_ray.train.session import TOKEN_HELP, carried_environment

ANSWER_SECONDS = 10.0  # for the dashboard to say that it is one
STOP_SECONDS = 120  # from SIGTERM to SIGKILL: the step and its checkpoint; Ray's own default is 3
STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
ACTIVE = ("PENDING", "RUNNING")
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASS|CREDENTIAL", re.IGNORECASE)


class Cluster:
    """The jobs of the cluster whose dashboard is at ``address``.

    Args:
        address: `http://HEAD:8265`; None: from RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        UserError: no address, nobody there, no Ray dashboard, or not our token.
    """

    def __init__(self, address: str | None) -> None:
        found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
        if not found:
            raise UserError("submit: no cluster; give the address of its dashboard, --address http://HEAD:8265")
        self.address = (found if "://" in found else f"http://{found}").rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise UserError(f"--address {without_credentials(found)}: jobs go to the dashboard, as http://HEAD:8265")
        self._look()
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # which Ray puts above what it is told
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard_sdk", "job.sdk"):  # which set their own levels when imported
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        with self._plainly():
            self._client = JobSubmissionClient(self.address)

    @property
    def shown(self) -> str:
        return without_credentials(self.address)

    def _look(self) -> None:
        """Whether a dashboard answers there; Ray's own client waits for ever. It gets our token only if it asks for one."""
        import requests

        try:
            answer = requests.get(f"{self.address}/api/version", timeout=ANSWER_SECONDS)
            if answer.status_code == 401 and not os.environ.get("RAY_AUTH_MODE"):
                _use_token()
            elif answer.status_code not in (401, 403):
                answer.json()["ray_version"]
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            nobody = isinstance(error, requests.ConnectionError | requests.Timeout)
            what = "nobody answers there" if nobody else "what answers there is no Ray dashboard"
            raise UserError(f"--address {self.shown}: {what}; give the dashboard's address, as http://HEAD:8265") from None

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise UserError(f"--address {self.shown}: it wants a token, and not the one given here; {TOKEN_HELP}") from None
        except (ConnectionError, requests.RequestException, aiohttp.ClientError):  # the last of the output's web socket
            raise InfraError(f"--address {self.shown}: the cluster does not answer any more") from None
        except (RuntimeError, ValueError) as error:
            lines = without_credentials(str(error)).strip().splitlines() or [type(error).__name__]
            raise UserError(f"--address {self.shown}: {lines[-1][:300]}") from None

    def submit(self, parcel: Parcel, *, working_dir: str | None, env: list[str]) -> str:
        """Start a job and return its id: the run's name, with a number from its second start on.

        Args:
            working_dir: folder of code that comes along; files that git ignores stay.
            env: names of variables to send beside those of :func:`~swav_ray.train.session.carried_environment`.

        Raises:
            UserError: a job works on this run already, a variable is not set, or the folder is not there or too large.
        """
        variables = {STOP_VARIABLE: os.environ.get(STOP_VARIABLE, str(STOP_SECONDS))} | carried_environment() | _sent(env)
        with self._plainly():
            jobs = self._client.list_jobs()
        identity = self._identity(parcel, jobs)
        with tempfile.TemporaryDirectory() as scratch:
            package = write_zip(parcel, working_dir, Path(scratch) / "job.zip")
            with self._plainly():
                return self._client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "swav_ray", *parcel.arguments]),
                    submission_id=identity,
                    runtime_env={"working_dir": str(package), "env_vars": variables},
                    metadata={"run": parcel.name, "folder": parcel.folder, "command": parcel.arguments[0]},
                )

    def _identity(self, parcel: Parcel, jobs: list[Any]) -> str:
        for job in jobs:
            same = parcel.folder and (job.metadata or {}).get("folder") == parcel.folder
            if same and str(job.status.value) in ACTIVE:
                raise UserError(
                    f"job {job.submission_id} works on {parcel.name!r} already ({parcel.folder}); watch it: "
                    f"{self.command('logs --follow', job.submission_id)}; or choose another name"
                )
        taken = {job.submission_id for job in jobs}
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", parcel.name or parcel.arguments[0]).strip("-") or "job"
        number = 1
        while (identity := name if number == 1 else f"{name}-{number}") in taken:
            number += 1
        return identity

    def command(self, what: str, identity: str) -> str:
        """Ray's own command on a job."""
        return f"ray job {what} --address {self.shown} {identity}"

    async def lines(self, identity: str) -> AsyncIterator[str]:
        """A job's output as it comes, in pieces, to its end."""
        with self._plainly():
            async for piece in self._client.tail_job_logs(identity):
                yield piece

    def follow(self, identity: str, show: Callable[[str], None]) -> Any:
        """Call ``show`` with each piece of a job's output; how it ended, as Ray's `JobDetails`.

        Raises:
            InfraError: the cluster does not answer any more; the job may go on.
        """
        import asyncio

        async def watch() -> None:
            async for piece in self.lines(identity):
                show(piece)

        goes_on = f"job {identity} may go on; watch it again: {self.command('logs --follow', identity)}"
        try:
            asyncio.run(watch())
            with self._plainly():
                ended = self._client.get_job_info(identity)
        except UserError as error:
            raise InfraError(f"{error}; {goes_on}") from None
        if str(ended.status.value) in ACTIVE:  # a proxy on the way closed the connection
            raise InfraError(f"--address {self.shown}: its output broke off; {goes_on}")
        return ended


def _use_token() -> None:
    """The token given here, or this machine's own, as Ray does for a cluster it finds by itself."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _sent(names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        if "=" in name or name not in os.environ:
            raise UserError(f"--env {name.partition('=')[0]}: give the name of a variable that is set here, without a value")
        found[name] = os.environ[name]
    return found
