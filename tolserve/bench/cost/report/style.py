"""Style and script of the page; both stand in it."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f24; --soft: #5c6570; --line: #d9dde2; --band: #f4f6f8;
  --c0: #1f6fb2; --c1: #c8501e; --c2: #2c8a4b; --c3: #7d4fb3; --c4: #9a7a00; --c5: #0f8a94; --c6: #a83268; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --soft: #9aa4b0; --line: #343b44;
  --band: #1d2228; --c0: #6db3ee; --c1: #f08a5d; --c2: #6fce8d; --c3: #bd97ee; --c4: #dcbb4a; --c5: #59cbd5;
  --c6: #ee85b4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2.5rem) 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, ul { max-width: 52rem; }
.answer { font-size: clamp(1.05rem, 2.5vw, 1.25rem); border-left: .3rem solid var(--c0); padding-left: 1rem; }
p.soft, figcaption { color: var(--soft); font-size: .9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; }
figure h3 { font-size: 1rem; margin: 0 0 .25rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
.scroll { overflow-x: auto; border: 1px solid var(--line); }
table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
th { background: var(--band); vertical-align: bottom; }
th:first-child { background: var(--band); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--c0); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
@media (max-width: 40rem) { svg text, svg .soft { font-size: 15px; }
  th:first-child, td:first-child { max-width: 11rem; white-space: normal; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(one => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.v ?? "";
    const order = (a, b) => column ? (parseFloat(value(a)) - parseFloat(value(b))) : value(a).localeCompare(value(b));
    const known = row => !column || value(row) !== "";
    const rows = [...body.rows], some = rows.filter(known).sort((a, b) => up ? order(a, b) : order(b, a));
    body.append(...some, ...rows.filter(row => !known(row)));
  }));
}
"""
