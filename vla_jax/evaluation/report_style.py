"""The look of `report.html`: one column, tabular numbers, light and dark by the reader's setting."""

CSS = """\
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1c2329; --muted: #67727c; --rule: #dfe4e8; --panel: #f6f8f9;
  --accent: #1f6f8b; --soft: #b9d6df; --solved: #2e7d4f; --failed: #b4472f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181b; --text: #e4e8eb; --muted: #93a0a9; --rule: #2c343a; --panel: #1b2125;
    --accent: #6fbcd6; --soft: #2b5160; --solved: #6cc08e; --failed: #e08a72;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; font-weight: 650; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 17px; font-weight: 600; margin: 0 0 12px; }
header p { max-width: 72ch; margin: 0; color: var(--muted); }
section { margin-top: 32px; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 9px 18px 9px 0; border-bottom: 1px solid var(--rule); }
thead th { font-size: 13px; font-weight: 500; color: var(--muted); border-bottom-color: var(--muted); }
tbody th { font-weight: 550; }
th.number, td.number { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.value { font-weight: 600; }
td .muted { white-space: nowrap; }
.muted, .description { color: var(--muted); font-weight: 400; }
.description { display: block; font-size: 13px; max-width: 44ch; }
.finding { margin: 18px 0 0; padding: 11px 16px; background: var(--panel); border-left: 3px solid var(--accent); }
svg.rate { display: block; width: 100%; min-width: 120px; max-width: 220px; height: 11px; margin-top: 4px; }
svg .grid { stroke: var(--rule); stroke-width: 1; vector-effect: non-scaling-stroke; }
svg .interval { fill: var(--soft); }
svg .dot { fill: var(--accent); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 18px 20px; }
.chart { margin: 0; }
.chart figcaption { font-size: 13px; font-weight: 550; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 10.5px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.chart path { fill: none; stroke-linejoin: round; }
.chart .raw { stroke: var(--soft); stroke-width: 1; }
.chart .trend { stroke: var(--accent); stroke-width: 1.8; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 18px; }
.film { margin: 0; }
.film video, .film img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--panel);
  image-rendering: pixelated; }
.film figcaption { margin-top: 6px; font-size: 13px; line-height: 1.35; }
.outcome { font-weight: 600; }
.solved .outcome { color: var(--solved); }
.failed .outcome { color: var(--failed); }
details { border-top: 1px solid var(--rule); padding-top: 14px; }
summary { cursor: pointer; color: var(--muted); }
pre { overflow-x: auto; margin: 12px 0 0; padding: 14px; background: var(--panel); border-radius: 4px;
  font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
"""
