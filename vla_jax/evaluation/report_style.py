"""The look of `report.html` beyond what all pages share: its table, rate bars and films."""

from vla_jax.core import page_style

CSS = (
    page_style.CSS
    + """\
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 9px 18px 9px 0; border-bottom: 1px solid var(--rule); }
thead th { font-size: 13px; font-weight: 500; color: var(--muted); border-bottom-color: var(--muted); }
tbody th { font-weight: 550; }
th.number, td.number { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.value { font-weight: 600; }
td .muted { white-space: nowrap; }
.description { display: block; font-size: 13px; max-width: 44ch; }
.finding { margin: 18px 0 0; padding: 11px 16px; background: var(--panel); border-left: 3px solid var(--accent); }
svg.rate { display: block; width: 100%; min-width: 120px; max-width: 220px; height: 11px; margin-top: 4px; }
svg .interval { fill: var(--soft); }
svg .dot { fill: var(--accent); }
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
)
