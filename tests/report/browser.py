"""A page in a real browser without any network, and what stands in a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")


def chromium(folder: Path, *arguments: str) -> tuple[str, list[str]]:
    """What headless Chromium, without any network, prints, and what the page wrote to its console."""
    command = [str(CHROMIUM), "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--allow-file-access-from-files"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, errors[-2000:]
    return out, [line for line in errors.splitlines() if "CONSOLE" in line]


def ours(page: str) -> str:
    """The page without Plotly."""
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def plots(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])["figures"]  # type: ignore[no-any-return]


def widths_in_a_frame(folder: Path, page: str, width: int, height: int = 3000) -> tuple[int, int]:
    """How wide a page lies in a frame of so many pixels (a window of Chromium is never as narrow as a phone), and how many
    drawings it holds."""
    report = "const d = f.contentDocument; "
    report += "document.title = [d.documentElement.scrollWidth, d.querySelectorAll('.main-svg').length]"
    frame = f'<iframe id="f" src="{page}" width="{width}" height="{height}" style="border:0" onload="{report}"></iframe>'
    (folder / "phone.html").write_text(f"<!doctype html><title>-</title>{frame}")
    dom, _ = chromium(folder, "--window-size=1400,3200", "--dump-dom", f"file://{folder}/phone.html")
    found = re.search("<title>([0-9]+),([0-9]+)</title>", dom)
    assert found
    return int(found[1]), int(found[2])
