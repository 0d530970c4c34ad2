"""A graph laid out on paper: the layers that an engine runs, and what flows between them.

Graphviz's dot places them (Gansner, Koutsofios, North, Vo: A technique for drawing directed graphs, 1993); names stay
here, so that none can be read as its markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import pygraphviz

from export.inspect.layers import Layer, Tensors, layers
from export.inspect.model import read, shaped

INCH = 72.0  # points, in which Graphviz measures
LETTER, HEIGHT = 7.2, 34.0  # points: of a letter, and of a node with two lines
LONGEST = 30  # letters of a line


@dataclass(frozen=True)
class Node:
    """A layer and where its centre is, in points from the upper left corner."""

    layer: Layer
    outputs: tuple[str, ...]
    x: float
    y: float
    width: float
    height: float

    @property
    def lines(self) -> tuple[str, str]:
        """What is written in it: the operator, and where in the model its weights stand."""
        place = self.layer.weight.removesuffix("_quantized").removesuffix(".weight") or self.layer.name
        return self.layer.operator, place if len(place) <= LONGEST else f"…{place[1 - LONGEST :]}"


@dataclass(frozen=True)
class Drawing:
    """Nodes in the file's order, and each edge as the path of an SVG."""

    nodes: tuple[Node, ...]
    edges: tuple[str, ...]
    width: float
    height: float


def draw(path: Path, batch: int | None = None) -> Drawing:
    """Lay out an ONNX file. Raises UserError where it cannot be read or has another batch size."""
    model = read(path, weights=False)
    counted, size = layers(model, batch)
    flat = shaped(model, size)[0]
    run = [(node, layer) for node, layer in zip(flat.graph.node, counted, strict=True) if not layer.folded]
    edges = _edges(flat.graph, [node for node, _ in run])
    plan = pygraphviz.AGraph(directed=True, strict=True, rankdir="TB", nodesep="0.25", ranksep="0.3")
    texts = [Node(layer, tuple(node.output), 0, 0, 0, 0).lines for node, layer in run]
    for number, lines in enumerate(texts):
        width = (max(map(len, lines)) * LETTER + 16) / INCH
        plan.add_node(
            number, shape="box", fixedsize=True, width=f"{width:.3f}", height=f"{HEIGHT / INCH:.3f}", label=""
        )
    plan.add_edges_from(edges)
    plan.layout(prog="dot")
    left, bottom, right, top = (float(value) for value in plan.graph_attr["bb"].split(","))
    nodes = []
    for number, (node, layer) in enumerate(run):
        placed = plan.get_node(number).attr
        x, y = (float(value) for value in placed["pos"].split(","))
        nodes.append(Node(layer, tuple(node.output), round(x - left, 1), round(top - y, 1),
                          round(float(placed["width"]) * INCH, 1), HEIGHT))  # fmt: skip
    curves = tuple(_curve(edge.attr["pos"], left, top) for edge in plan.edges())
    return Drawing(tuple(nodes), curves, round(right - left, 1), round(top - bottom, 1))


def _edges(graph: onnx.GraphProto, run: Sequence[onnx.NodeProto]) -> list[tuple[int, int]]:
    """Which of these nodes reads what which other has made; what is folded between them is passed over."""
    tensors = Tensors(graph)
    numbers = {name: number for number, node in enumerate(run) for name in node.output}

    def maker(name: str) -> int | None:
        while name not in numbers and (made := tensors.producer.get(name)) is not None and made.input:
            name = made.input[0]
        return numbers.get(name)

    found = [(maker(name), number) for number, node in enumerate(run) for name in node.input if name]
    return list(dict.fromkeys((source, number) for source, number in found if source is not None))


def _curve(text: str, left: float, top: float) -> str:
    """Graphviz's spline ("e,x,y x,y …", the end first) as an SVG path of cubic Bézier curves."""
    points = [part for part in text.replace("\\\n", "").split() if part[0] not in "es"]
    end = next((part[2:] for part in text.split() if part.startswith("e,")), None)
    pairs = [tuple(float(value) for value in part.split(",")) for part in (*points, *([end] if end else []))]
    moved = [f"{x - left:.1f},{top - y:.1f}" for x, y in pairs]
    last = f" L{moved[-1]}" if end else ""
    return f"M{moved[0]} C{' '.join(moved[1 : len(points)])}{last}"
