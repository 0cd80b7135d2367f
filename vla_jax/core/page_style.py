"""The look of every page we write: one column, tabular numbers, charts, light and dark by the reader's setting."""

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
.muted, .description { color: var(--muted); font-weight: 400; }
svg .grid { stroke: var(--rule); stroke-width: 1; vector-effect: non-scaling-stroke; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 18px 20px; }
.chart { margin: 0; }
.chart figcaption { font-size: 13px; font-weight: 550; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 10.5px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.chart path { fill: none; stroke-linejoin: round; }
.chart .raw { stroke: var(--soft); stroke-width: 1; }
.chart .trend { stroke: var(--accent); stroke-width: 1.8; }
"""
