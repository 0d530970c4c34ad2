"""A GELU written out becomes one Gelu operator, in whichever order its products and sums were written.

Before: 0.5 * x * (1 + Erf(x / sqrt(2)))                              -> Gelu(x)
        0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))     -> Gelu(x, approximate="tanh")

Every value made of x by sums, products and powers is a polynomial, so a graph matches when its polynomials do: that of
Erf's or Tanh's argument in x, and that of the result in x and s, the value of Erf or Tanh: x/2 + x*s/2. Formulas:
Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), section 2. Gelu exists from opset 20 on: a graph below it is
raised to 20, and left as it was where that cannot be done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from itertools import product

import onnx_ir as ir

from export.rewrites.nodes import array, producer, raise_opset, replace, scalar

OPSET = 20
Powers = tuple[int, int]  # of x and of s
Polynomial = dict[Powers, float]  # coefficients

X, S = {(1, 0): 1.0}, {(0, 1): 1.0}
ARGUMENTS: dict[str, tuple[str, Polynomial]] = {
    "Erf": ("none", {(1, 0): math.sqrt(0.5)}),
    "Tanh": ("tanh", {(1, 0): math.sqrt(2 / math.pi), (3, 0): 0.044715 * math.sqrt(2 / math.pi)}),
}
RESULT: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")
DEPTH = 8  # operators between x and the argument, or Erf and the result; the longest known form has 6
CLOSE = 1e-6  # relative: constants are float32


def apply(model: ir.Model) -> int:
    """Fuse in place; returns how many GELUs there are."""
    if next(_find(model.graph), None) is None or not raise_opset(model, OPSET):
        return 0
    count = 0
    while found := next(_find(model.graph), None):  # anew each time: the result of one may be the x of the next
        result, x, approximate = found
        replace(result, ir.node("Gelu", [x], attributes={"approximate": approximate}))
        count += 1
    return count


def _find(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value, str]]:
    """(result, x, approximate) of each GELU."""
    for node in graph:
        if node.domain != "" or node.op_type not in ARGUMENTS or node.inputs[0] is None:
            continue
        approximate, wanted = ARGUMENTS[node.op_type]
        argument, s = node.inputs[0], node.outputs[0]
        for x in _sources(argument, DEPTH):
            if _same(_expand(argument, {x: X}, DEPTH), wanted):
                results = (v for v in _results(s, DEPTH) if _same(_expand(v, {x: X, s: S}, DEPTH), RESULT))
                yield from ((result, x, approximate) for result in results)


def _sources(value: ir.Value, depth: int) -> set[ir.Value]:
    """The variables that arithmetic makes the value of."""
    node = producer(value, *ARITHMETIC)
    if node is None or not depth:
        return set()
    variables = {part for part in node.inputs if part is not None and array(part) is None}
    return variables.union(*(_sources(part, depth - 1) for part in variables))


def _results(value: ir.Value, depth: int) -> set[ir.Value]:
    """The values that arithmetic makes of the value."""
    made = {node.outputs[0] for node in value.consumers() if node.domain == "" and node.op_type in ARITHMETIC}
    return made.union(*(_results(part, depth - 1) for part in made)) if depth else set()


def _expand(value: ir.Value | None, known: dict[ir.Value, Polynomial], depth: int) -> Polynomial | None:
    """The value as a polynomial in the known ones; None when it is none."""
    if value in known:
        return known[value]
    if (constant := scalar(value)) is not None:
        return {(0, 0): constant}
    node = producer(value, *ARITHMETIC)
    if node is None or not depth:
        return None
    first, second = (_expand(part, known, depth - 1) for part in node.inputs)
    return None if first is None or second is None else _combine(node.op_type, first, second)


def _combine(operator: str, a: Polynomial, b: Polynomial) -> Polynomial | None:
    if operator == "Add":
        return _sum(a, b, 1)
    if operator == "Sub":
        return _sum(a, b, -1)
    if operator == "Mul":
        return _multiply(a, b)
    if set(b) != {(0, 0)}:  # a divisor or an exponent is a number
        return None
    number = b[0, 0]
    if operator == "Div":
        return _multiply(a, {(0, 0): 1 / number}) if number else None
    return reduce(_multiply, [a] * int(number)) if number in (2, 3) else None


def _sum(a: Polynomial, b: Polynomial, sign: int) -> Polynomial:
    return {powers: a.get(powers, 0) + sign * b.get(powers, 0) for powers in {*a, *b}}


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    made: Polynomial = {}
    for ((i, j), p), ((k, m), q) in product(a.items(), b.items()):
        made[i + k, j + m] = made.get((i + k, j + m), 0) + p * q
    return made


def _same(a: Polynomial | None, b: Polynomial) -> bool:
    return a is not None and set(a) == set(b) and all(math.isclose(a[key], b[key], rel_tol=CLOSE) for key in b)
