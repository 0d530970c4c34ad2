"""Self-contained HTML pages: no script from elsewhere, no font, no picture beside them. All names are escaped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from export.inspect.inventory import Inventory, Row
from trainers.manifest import write_atomic

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1f2937; --paper: #fff; --line: #e5e7eb; --faint: #6b7280; --hover: #f2f4f7;
        --share-of: #cfe0f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --paper: #15181d; --line: #374151; --faint: #9ca3af; --hover: #262b33; --share-of: #2b4a6b; }
}
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 84rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { border-bottom: 1px solid var(--faint); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--ink); }
.sortable th:hover { background: var(--hover); }
.bar { min-width: 5rem;
       background: linear-gradient(var(--share-of), var(--share-of)) no-repeat left / var(--share) 100%; }
img { max-width: 100%; }
code { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
.note { color: var(--faint); }
{% block style %}{% endblock %}
</style>
</head>
<body>
<main>{% block body %}{% endblock %}</main>
<script>
for (const button of document.querySelectorAll(".sortable th button")) button.onclick = () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0], place = head.cellIndex;
  const key = row => { const cell = row.cells[place], value = cell.dataset.value;
                       return value === undefined ? cell.textContent : Number(value); };
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = (a, b) => typeof a === "string" || typeof b === "string"
    ? String(a).localeCompare(String(b), undefined, {numeric: true}) : a - b;
  const rows = [...body.rows].sort((a, b) => order(key(a), key(b)));
  body.append(...(up ? rows : rows.reverse()));
};
</script>
</body>
</html>
"""

OPS = """\
{% extends "page" %}
{% block body %}
<h1>{{ heading }}</h1>
{% for note in notes %}<p class="note">{{ note }}.</p>{% endfor %}
<img alt="Bars of FLOPs, bytes and parameters by operator and by layer" src="data:image/png;base64,{{ picture }}">
{% for title, first, rows in tables %}
<h2>{{ title }}</h2>
<table class="sortable">
<thead><tr>{% for name in first %}<th scope="col"><button type="button">{{ name }}</button></th>{% endfor %}
{% for name in names %}<th scope="col" class="number"><button type="button">{{ name }}</button></th>{% endfor %}
</tr></thead>
<tbody>
{% for texts, numbers in rows %}<tr>{% for text in texts %}<td><code>{{ text }}</code></td>{% endfor %}
{% for value, text, share in numbers %}<td class="number bar" data-value="{{ value }}"
 style="--share: {{ share }}%">{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
{% endfor %}
<p class="note">A column is sorted by a click on its head. Bars are shares of the whole.</p>
{% endblock %}
"""


def render(template: str, **values: Any) -> str:
    """A page: `template` extends "page" and everything that is put into it is escaped."""
    pages = Environment(loader=DictLoader({"page": PAGE}), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return pages.from_string(template).render(**values)


def write(path: Path, template: str, **values: Any) -> None:
    """The same, to a file."""
    write_atomic(path, render(template, **values).encode())


def write_ops(inventory: Inventory, picture: Path, path: Path) -> None:
    """The chart with the whole tables, in one page."""
    from export.inspect.charts import heading, measures

    columns = measures(inventory)

    def numbers(row: Row) -> list[tuple[float, str, str]]:
        values = [(measure, measure.value(row)) for measure in columns]
        return [
            (-1 if value is None else value, measure.text(value), f"{100 * (value or 0) / (measure.whole or 1):.2f}")
            for measure, value in values
        ]

    operators = [((row.operator, row.precision, row.nodes), numbers(row)) for row in inventory.by_operator]
    layers = [((row.label, row.operator, row.precision, row.weight, shape(row.shape)), numbers(row))
              for row in inventory.by_layer]  # fmt: skip
    write(
        path, OPS, title=inventory.path.name, heading=heading(inventory), notes=inventory.notes(),
        picture=base64.b64encode(picture.read_bytes()).decode(), names=[measure.title for measure in columns],
        tables=[("By operator", ("operator", "precision", "nodes"), operators),
                ("By layer", ("layer", "operator", "precision", "weight", "output"), layers)],
    )  # fmt: skip


def shape(sizes: tuple[int, ...] | None) -> str:
    """A tensor's shape as text."""
    return "×".join(map(str, sizes)) if sizes is not None else "?"
