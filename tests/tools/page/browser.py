"""Pages in headless Chromium: each at several widths in a frame of its own, all of them in one start of the browser."""

import html
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WIDTHS = (400, 1400)
LISTENER = """<script>
window.pageErrors = [];
addEventListener("error", (event) => window.pageErrors.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => window.pageErrors.push(`refused: ${event.violatedDirective}`));
for (const kind of ["error", "warn"]) console[kind] = (...words) => window.pageErrors.push(words.join(" "));
</script>"""
OUTER = """<!doctype html><title>audit</title><style>iframe { border: 0 }</style><pre id="audit"></pre><script>
const found = {};
addEventListener("message", (event) => {
  found[event.data.name] = event.data.found;
  document.getElementById("audit").textContent = JSON.stringify(found);
});
</script>"""
CONSOLE = re.compile(r"CONSOLE[^\]]*\] (.*)")


@dataclass(frozen=True)
class Audit:
    errors: list[str]
    faults: list[str]
    readings: list[str]
    is_dark: bool
    smallest_contrast: float
    num_charts: int


def install_chromium() -> None:
    """Skips the test where there is no Chromium and it can't be installed; under CI that is a failure."""
    installed = subprocess.run(["bash", str(HERE / "install.sh")], capture_output=True, text=True, check=False)
    if installed.returncode != 0 and "CI" not in os.environ:
        pytest.skip(f"Chromium can't be installed: {installed.stderr.strip()[-300:]}")
    assert installed.returncode == 0, installed.stderr


def audit(pages: Mapping[str, str], folder: Path, *, dark: bool) -> dict[str, dict[int, Audit]]:
    """For each page by name, what audit.js finds at each width. `folder` is an empty one to work in."""
    script = f"<script>{(HERE / 'audit.js').read_text(encoding='utf-8')}</script></body>"
    frames = ""
    for name, text in pages.items():
        changed = text.replace("<head>", "<head>" + LISTENER, 1)
        head, end = changed.rsplit("</body>", 1)
        (folder / f"{name}.html").write_text(head + script + end, encoding="utf-8")
        for width in WIDTHS:
            frames += f'<iframe name="{name}@{width}" src="{name}.html" width="{width}" height="800"></iframe>'
    (folder / "audit.html").write_text(OUTER + frames, encoding="utf-8")
    document, said = _dumped(folder / "audit.html", folder / "profile", dark=dark)
    told = re.search(r'<pre id="audit">(.*?)</pre>', document, re.DOTALL)
    assert told and told[1], "no page told what it found"
    found: dict[str, dict[int, Audit]] = {name: {} for name in pages}
    for key, own in json.loads(html.unescape(told[1])).items():
        name, _, width = key.rpartition("@")
        found[name][int(width)] = _audit_of(own, said)
    assert all(set(widths) == set(WIDTHS) for widths in found.values()), "a page did not tell what it found"
    return found


def _audit_of(own: dict[str, Any], said: list[str]) -> Audit:
    errors = [*own["errors"], *said]
    return Audit(errors, own["faults"], own["readings"], own["isDark"], own["smallestContrast"], own["numCharts"])


def _dumped(page: Path, profile: Path, *, dark: bool) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what was written to the browser's console, by whichever page."""
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--window-size=1500,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, CONSOLE.findall(done.stderr)
