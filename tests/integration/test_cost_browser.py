"""The page of the cost bench in Chromium: its script runs, its table sorts, it is dark where asked and fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cost_kit import made_up_result

from tolserve.bench.cost.report import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const errors = []; window.onerror = message => errors.push(message);
window.addEventListener("load", () => {
  const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex(head => head.textContent === "vs same codes");
  const values = () => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[column].dataset.v));
  heads[column].querySelector("button").click(); const up = values(), sorted = heads[column].getAttribute("aria-sort");
  heads[column].querySelector("button").click(); const down = values();
  heads[0].querySelector("button").click(); const first = table.tBodies[0].rows[0].cells[0].textContent;
  const wide = [...document.querySelectorAll("svg, h1, p, figure")].filter(
    one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length;
  const cut = [...document.querySelectorAll("svg text")].filter(text => {
    const own = text.getBoundingClientRect(), whole = text.closest("svg").getBoundingClientRect();
    return own.left < whole.left - 1 || own.right > whole.right + 1 || own.top < whole.top - 1;
  }).map(text => text.textContent);
  const found = {errors, cut, up, down, sorted, first, wide, width: document.documentElement.clientWidth,
    scrolls: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    requests: performance.getEntriesByType("resource").length};
  document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
});
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


def look(folder: Path, *options: str) -> dict[str, object]:
    """What the probe finds in the page of a full run."""
    text = page.render(made_up_result(predicted=True)).replace("<head>", "<head>" + PROBE)
    (folder / "page.html").write_text(text)
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={folder}/profile", *options, "--dump-dom", (folder / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.findall(r"<body><pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads(html.unescape(found[0])))


def test_wide_and_light_with_a_table_that_sorts(tmp_path: Path) -> None:
    seen = look(tmp_path, "--window-size=1280,900")
    assert seen["errors"] == [] and seen["requests"] == 0 and seen["cut"] == []
    assert seen["up"] == sorted(seen["up"]) and seen["down"] == seen["up"][::-1]  # type: ignore[call-overload, index]
    assert seen["sorted"] == "ascending" and str(seen["first"]).startswith("1b:")
    assert not seen["scrolls"] and seen["wide"] == 0
    assert seen["paper"] == "rgb(255, 255, 255)"


def test_narrow_and_dark(tmp_path: Path) -> None:
    seen = look(tmp_path, "--window-size=400,900", "--blink-settings=preferredColorScheme=0")
    assert seen["errors"] == [] and seen["cut"] == []
    assert int(str(seen["width"])) <= 500 and not seen["scrolls"] and seen["wide"] == 0
    assert seen["paper"] == "rgb(20, 23, 27)" and seen["ink"] == "rgb(230, 233, 237)"
