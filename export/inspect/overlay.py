"""Two graphs laid over one another, as an HTML page: operations side by side in topological order."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from export.inspect.graphdiff import Diff, Row
from export.inspect.html import shape, write
from export.inspect.operations import Operation
from trainers.cli import megabytes

CONTEXT = 2  # operations shown before and after a change; longer stretches of the same are folded away

OVERLAY = """\
{% extends "page" %}
{% block style %}
.graph { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr) minmax(0, 1.2fr); }
.graph > div { padding: .15rem .6rem; border-bottom: 1px solid var(--line); }
.head { font-weight: 600; border-bottom: 1px solid var(--faint) !important; }
.added { background: #22a04533; } .removed { background: #d43a2a33; } .changed { background: #d9a00040; }
.absent { background: repeating-linear-gradient(135deg, var(--hover) 0 6px, var(--paper) 6px 12px); }
.detail { color: color-mix(in oklab, var(--ink) 75%, var(--paper)); font-size: .88em; }
details > summary { cursor: pointer; color: var(--faint); padding: .25rem .6rem; background: var(--hover); }
.graph > div { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .graph { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); font-size: .9em; }
  .graph > .what { grid-column: 1 / -1; } .graph > .what:not(.changed) { display: none; }
}
.key span { padding: .1rem .6rem; margin-right: .4rem; }
{% endblock %}
{% macro node(operation) %}
{% if operation %}<strong>{{ operation.operator }}</strong> <code>{{ operation.name }}</code>
<div class="detail">{{ operation.detail }}</div>{% endif %}
{% endmacro %}
{% macro lines(rows) %}
{% for row in rows %}
<div class="{{ row.left }}">{{ node(row.before) }}</div>
<div class="{{ row.right }}">{{ node(row.after) }}</div>
<div class="what {{ row.status if row.changes else '' }}">{% for change in row.changes %}<div>{{ change }}</div>
{% endfor %}</div>
{% endfor %}
{% endmacro %}
{% block body %}
<h1>{{ title }}</h1>
<table>
{% for subject, text in summary %}<tr><th scope="row">{{ subject }}</th><td>{{ text }}</td></tr>
{% endfor %}</table>
<p class="key"><span class="removed">removed</span><span class="added">added</span><span class="changed">changed</span>
<span>same</span></p>
<div class="graph">
{% for head in heads %}<div class="head{% if loop.last %} what{% endif %}">{{ head }}</div>{% endfor %}
</div>
{% for folded, rows in stretches %}
{% if folded %}<details><summary>{{ rows | length }} operations that are the same</summary>
<div class="graph">{{ lines(rows) }}</div></details>
{% else %}<div class="graph">{{ lines(rows) }}</div>
{% endif %}
{% endfor %}
{% endblock %}
"""


def write_overlay(diff: Diff, path: Path) -> None:
    """Write the page."""
    before, after = diff.before, diff.after
    heads = [f"{side.path.name}, {megabytes(side.bytes)}, {side.nodes} nodes" for side in (before, after)]
    write(
        path, OVERLAY, title=f"{before.path.stem} → {after.path.stem}", summary=diff.summary(),
        heads=[*heads, "what changed"], stretches=stretches(diff.rows),
    )  # fmt: skip


def stretches(rows: tuple[Row, ...]) -> list[tuple[bool, list[dict[str, Any]]]]:
    """The rows in runs; True for a run of unchanged ones that is folded away."""
    changed = [place for place, row in enumerate(rows) if row.status != "same"]
    near = {place + step for place in changed for step in range(-CONTEXT, CONTEXT + 1)}
    runs = groupby(range(len(rows)), key=lambda place: place not in near)
    return [(folded, [_cells(rows[place]) for place in places]) for folded, places in runs]


def _cells(row: Row) -> dict[str, Any]:
    paired = row.before is not None and row.after is not None
    shade = row.status if row.status != "same" else ""
    return {
        "status": row.status, "before": row.before and _described(row.before),
        "after": row.after and _described(row.after), "changes": row.changes,
        "left": shade if paired or row.before else "absent", "right": shade if paired or row.after else "absent",
    }  # fmt: skip


def _described(operation: Operation) -> dict[str, str]:
    """An operation with its weights and attributes in one line."""
    weights = [f"{weight.name} {weight.dtype} {shape(weight.shape)}" for weight in operation.weights.values()]
    attributes = [f"{name}={value}" for name, value in operation.attributes.items()]
    return {"operator": operation.operator, "name": operation.name, "detail": "; ".join(weights + attributes)}
