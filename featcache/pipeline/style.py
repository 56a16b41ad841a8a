"""The style sheet of ``report.html``: one column of cards, light or dark as the reader's system is."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5c6b7c; --page: #f4f6f9; --card: #ffffff; --line: #dfe5ec;
  --good: 15 118 110; --bad: 201 84 28; --bar: #e7ecf2; --warn-ink: #7a3d00; --warn: #fff1dd; --warn-line: #f1c48b;
  --strong: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ecf3; --soft: #97a6b7; --page: #10151c; --card: #182029;
  --line: #2a3542; --good: 45 190 175; --bad: 240 136 76; --bar: #24303d; --warn-ink: #ffd9a8; --warn: #3a2912;
  --warn-line: #6d4a1d; --strong: #04211e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
header h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
header p, .note, caption, figcaption { color: var(--soft); margin: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px;
  margin-top: 20px; }
h2 { font-size: 18px; margin: 0 0 4px; } .note { font-size: 13.5px; margin-bottom: 12px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 20px; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.figure b { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figure span { color: var(--soft); font-size: 13.5px; }
.warning { background: var(--warn); color: var(--warn-ink); border: 1px solid var(--warn-line); border-radius: 12px;
  padding: 12px 18px; margin-top: 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
td.number, th.number { text-align: right; padding-right: 14px; white-space: nowrap; }
:where(td:not(.number, .name)) { min-width: 120px; }
td small { font-weight: 400; color: var(--soft); } td.name, th.name { font-weight: 600; min-width: 84px; }
.bar { display: inline-block; position: relative; width: 100%; min-width: 90px; height: 10px; border-radius: 5px;
  background: var(--bar); overflow: hidden; vertical-align: middle; }
.bar i { position: absolute; inset: 0 auto 0 0; background: rgb(var(--good)); border-radius: 5px; }
.bar.low i { background: rgb(var(--bad)); }
.matrix { width: auto; } .matrix th, .matrix td { border: 0; padding: 0; min-width: 0; }
.matrix td { width: 38px; height: 32px; text-align: center; vertical-align: middle; font-size: 12.5px;
  border: 1px solid var(--card); border-radius: 5px; background: rgb(var(--bad) / var(--a, 0)); }
.matrix td.right { background: rgb(var(--good) / var(--a, 0)); }
.matrix td.strong { color: var(--strong); font-weight: 600; }
.matrix td.none { color: var(--soft); opacity: .45; }
.matrix th.row { text-align: right; padding-right: 10px; vertical-align: middle; white-space: nowrap; max-width: 190px;
  overflow: hidden; text-overflow: ellipsis; font-weight: 500; }
.matrix th.column { vertical-align: bottom; font-weight: 500; }
.matrix th.column span { display: block; writing-mode: vertical-rl; transform: rotate(180deg); margin: 0 auto 6px;
  max-height: 130px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
svg.matrix { width: min(100%, 640px); height: auto; border: 1px solid var(--line); border-radius: 6px; }
svg.path { width: min(100%, 640px); height: auto; font-size: 11px; } svg.path text { fill: var(--soft); }
svg.path .axis { font-size: 12px; font-weight: 600; } svg.path .grid { stroke: var(--line); }
svg.path .frame { stroke: var(--soft); } svg.path .chosen { stroke: var(--soft); stroke-dasharray: 4 4; }
svg.path polyline { fill: none !important; stroke-width: 2; } svg.path polyline.right { stroke: rgb(var(--good)); }
svg.path polyline.wrong { stroke: rgb(var(--bad)); } svg.path .band { opacity: .15; }
svg .right { fill: rgb(var(--good)); } svg .wrong { fill: rgb(var(--bad)); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); gap: 14px; }
figure { margin: 0; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
figure div { height: 116px; display: flex; align-items: center; justify-content: center; background: var(--page);
  border: 1px solid var(--line); border-radius: 8px; margin-bottom: 6px; }
figure img { max-width: 112px; max-height: 112px; border-radius: 4px; }
figure b.wrong { color: rgb(var(--bad)); } figure small { color: var(--soft); }
details summary { cursor: pointer; color: var(--soft); margin-top: 10px; }
ol, ul { margin: 8px 0 0; padding-left: 22px; } li { margin-bottom: 4px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 8px 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 13px; margin-top: 24px; }
@media print { body { background: #fff; } section, .figure { break-inside: avoid; } }
"""
