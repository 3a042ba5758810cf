"""The page's style sheet: light and dark, narrow and wide, screen and paper.

    f"<style>{STYLE}</style>"
"""

# Plots of very many runs are drawn once, on white.
INVERT_STYLE = """\
@media screen and (prefers-color-scheme: dark) {
  .plots img.invert { filter: invert(.9) hue-rotate(180deg); }
}
"""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1d2430; --soft: #566172; --line: #dfe3ea;
  --accent: #0072b2; --mark: #e8f2f9; --warn: #8a4b00; --warn-paper: #fff4e0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --card: #161b22; --ink: #dfe5ee; --soft: #9aa6b6; --line: #2c343f;
    --accent: #6bb8e6; --mark: #172a3a; --warn: #f2b84b; --warn-paper: #2b2210;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .25rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 85ch; text-wrap: pretty; }
h1, h2, h3, td, th, figcaption, li { overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.lead { font-size: 1.06rem; padding: 0; margin: 1rem 0 0; list-style: none; }
.lead li { margin: .3rem 0; max-width: 110ch; text-wrap: pretty; }
.warn {
  color: var(--warn); background: var(--warn-paper); border-left: 4px solid currentColor;
  border-radius: 4px; padding: .75rem 1rem; margin: 1.25rem 0; max-width: none;
}
.scroll {
  overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; margin: .75rem 0 1rem;
}
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .5rem .7rem; text-align: right; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); font-size: .82rem; }
thead th { border-bottom: 1px solid var(--line); vertical-align: bottom; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody + tbody tr:first-child > * { border-top: 3px double var(--line); }
tbody th, th.name { text-align: left; color: var(--ink); font-size: .9rem; }
tbody th { white-space: normal; min-width: 9rem; max-width: 22rem; }
thead tr.groups th { border: 0; padding-bottom: 0; text-align: left; }
td.first, th.first { border-left: 1px solid var(--line); }
tr.floor > * { color: var(--soft); font-weight: 400; }
tr.floor b { color: var(--ink); }
tr.best > * { background: var(--mark); }
td.hole { color: var(--warn); }
td.hole[colspan] { text-align: left; }
th small, td small { display: block; font-weight: 400; color: var(--soft); }
td small { font-size: .72rem; }
td.text { text-align: left; white-space: normal; min-width: 14rem; }
.tag {
  display: inline-block; border-radius: 99px; padding: 0 .6em; font-size: .78rem;
  font-weight: 600; background: var(--mark); color: var(--accent);
}
.tag.failed, .tag.lost, .tag.unknown { background: var(--warn-paper); color: var(--warn); }
.plots, .cards { display: grid; gap: 1rem; margin: 1rem 0; padding: 0; }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.plots figure {
  margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; break-inside: avoid;
}
.plots img { display: block; width: 100%; height: auto; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); }
.card {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; break-inside: avoid;
}
.card img {
  display: block; width: 100%; height: 210px; object-fit: contain; padding: .75rem;
  border-bottom: 1px solid var(--line);
}
.card figcaption { padding: .75rem 1rem 1rem; font-size: .92rem; }
.card dl { margin: 0; }
.card dt { font-size: .75rem; color: var(--soft); margin-top: .6rem; }
.card dt:first-child { margin-top: 0; }
.card dd { margin: 0; }
.card dd.wrote { font-weight: 600; }
.card .id { font-size: .72rem; color: var(--soft); margin: .75rem 0 0; }
details {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin: .5rem 0; padding: .6rem 1rem;
}
summary { cursor: pointer; font-weight: 600; }
pre {
  overflow-x: auto; font: .8rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  border-top: 1px solid var(--line); padding-top: .75rem;
}
ul.missing { padding-left: 1.2rem; margin: .25rem 0 1rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print {
  :root {
    --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --accent: #005a8c;
    --mark: #eef4f8; --warn: #6b3a00; --warn-paper: #fff;
  }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 2pt 3pt; }
  .plots { grid-template-columns: 1fr 1fr; }
  .cards { grid-template-columns: repeat(3, 1fr); }
  .card img { height: 120pt; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""
