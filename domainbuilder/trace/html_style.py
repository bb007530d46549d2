"""How the page of a run looks: light or dark as the reader's system is, on wide and narrow screens."""

from __future__ import annotations

STYLE = """
:root {
  --bg:#fff;
  --fg:#1b1f24;
  --dim:#5b6471;
  --card:#f5f7fa;
  --edge:#d9dee5;
  --accent:#2f6fde;
  --good:#1a7f37;
  --bad:#c62828;
}
@media (prefers-color-scheme:dark){
:root {
  --bg:#14171c;
  --fg:#e8ebef;
  --dim:#9aa4b2;
  --card:#1c2129;
  --edge:#343b46;
  --accent:#6ea0ff;
  --good:#57c977;
  --bad:#ff7b7b;
}
}
*{box-sizing:border-box}
body {
  margin:0;
  background:var(--bg);
  color:var(--fg);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;
}
header,main{max-width:1240px;margin:auto;padding:0 20px}
header{padding-top:24px}
h1{font-size:24px;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:32px 0 10px}
h3{font-size:15px;margin:18px 0 0}
p{margin:4px 0}
.dim,small{color:var(--dim)}
.badge {
  display:inline-block;
  font-size:14px;
  font-weight:600;
  padding:2px 10px;
  border-radius:12px;
  color:var(--bg);
  vertical-align:middle;
}
.good{background:var(--good)}
.bad{background:var(--bad)}
.cmd,code,pre {
  font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
  font-size:12.5px;
}
.cmd{overflow-wrap:anywhere;color:var(--dim)}
code{overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin:16px 0}
.tiles div{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:10px 14px}
.tiles b{display:block;font-size:19px;font-variant-numeric:tabular-nums}
.tiles span{color:var(--dim);font-size:13px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;border-bottom:1px solid var(--edge);padding:8px 0}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
.lanes{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:12px}
.lane,.axis {
  display:grid;
  grid-template-columns:130px minmax(0,1fr);
  gap:12px;
  align-items:end;
  margin-bottom:8px;
}
.lane i{font-style:normal;line-height:1.2;font-size:13px}
.lane svg{width:100%;height:34px;display:block;border-bottom:1px solid var(--edge)}
.lane path{fill:var(--accent)}
.lane .exceptions{fill:#d63b3b}
.lane .pagetables{fill:#8b4fd0}
.lane .events{fill:#d9730d}
.lane .scheduling{fill:#0f9d8a}
.lane .console{fill:#3c9a3f}
.lane .devices{fill:#a9820a}
.lane .frames{fill:var(--dim);fill-opacity:.55}
.axis div {
  display:flex;
  justify-content:space-between;
  color:var(--dim);
  font-size:12px;
  font-variant-numeric:tabular-nums;
}
pre {
  background:var(--card);
  border:1px solid var(--edge);
  border-radius:8px;
  padding:12px;
  margin:0;
  overflow:auto;
  line-height:1.4;
}
.console{max-height:640px}
.t{color:var(--dim);display:inline-block;width:9em;user-select:none}
.gap{color:var(--bad)}
.wide{overflow-x:auto}
.wide img{min-width:900px;max-width:100%;border:1px solid var(--edge);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:13.5px;margin:6px 0 14px}
th{text-align:left;color:var(--dim);font-weight:600}
td,th{padding:3px 10px 3px 0;border-bottom:1px solid var(--edge);vertical-align:top}
td+td,th+th{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.bar {
  display:inline-block;
  width:110px;
  height:8px;
  background:var(--edge);
  border-radius:4px;
  overflow:hidden;
  text-align:left;
}
.bar span{display:block;height:8px;background:var(--accent)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:0 28px}
@media (max-width:620px){
.axis span:nth-child(even){display:none}
.lane,.axis{grid-template-columns:92px minmax(0,1fr);gap:8px}
.bar{width:56px}
.t{width:8em}
header,main{padding:0 12px}
}
"""
