"""`graph`: the objects of a chart and their references as an SVG picture, laid out in layers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from chart_harness import options
from chart_harness.objects import Manifests
from chart_harness.references import Given, references

_BOX_WIDTH, _BOX_HEIGHT = 216, 36
_COLUMN, _ROW = 330, 46
_MARGIN = 24
_SWEEPS = 8
"""Passes over the layers that move each object towards those it is connected with."""

_COLOURS: Mapping[str, tuple[str, ...]] = {
    "#dbeafe": ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Pod"),
    "#ede9fe": ("Job", "CronJob"),
    "#dcfce7": ("Service", "Ingress", "Gateway", "HTTPRoute", "VirtualService", "DestinationRule"),
    "#fef9c3": ("ConfigMap", "Secret", "PersistentVolumeClaim"),
    "#fee2e2": ("NetworkPolicy", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
    "#f3f4f6": ("PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceMonitor", "PodMonitor", "ScaledObject"),
}
_OTHER_COLOUR = "#ffedd5"


@dataclass(frozen=True)
class Edge:
    """That one object refers to another.

    Attributes:
        source: as `Kind/name`.
        target: as `Kind/name`; it need not be in the rendering.
        paths: the fields that refer.
    """

    source: str
    target: str
    paths: tuple[str, ...]


def edges(manifests: Manifests, given: Given | None = None) -> list[Edge]:
    """References between objects, sorted.

    Left out are the account `default`, which every namespace has, and whom a NetworkPolicy lets in or out: those would
    connect everything with everything.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for manifest in manifests:
        for reference in references(manifest, manifests, given or Given()):
            if manifest.kind == "NetworkPolicy" and reference.path != "spec.podSelector":
                continue
            for target in reference.targets:
                if target not in ("ServiceAccount/default", manifest.id):
                    paths = found.setdefault((manifest.id, target), [])
                    if reference.path not in paths:
                        paths.append(reference.path)
    return [Edge(source, target, tuple(paths)) for (source, target), paths in sorted(found.items())]


def layers(nodes: Sequence[str], connections: Sequence[Edge]) -> list[list[str]]:
    """Objects in columns, so that references lead to the right; those of a circle stand in one order of their names.

    Objects without any reference come last, in columns of their own.
    """
    targets: dict[str, list[str]] = {node: [] for node in nodes}
    sources: dict[str, list[str]] = {node: [] for node in nodes}
    for edge in connections:
        targets[edge.source].append(edge.target)
        sources[edge.target].append(edge.source)
    depth: dict[str, int] = {}

    def place(node: str, above: frozenset[str]) -> int:
        """Steps to the end of the longest way from a node."""
        if node not in depth:
            ways = [place(target, above | {node}) for target in targets[node] if target not in above]
            depth[node] = 1 + max(ways, default=-1)
        return depth[node]

    connected = sorted(node for node in nodes if targets[node] or sources[node])
    for node in connected:
        place(node, frozenset({node}))
    last = max((depth[node] for node in connected), default=-1)
    columns: list[list[str]] = [[] for _ in range(last + 1)]
    for node in connected:
        # An object stands just left of the nearest one that it refers to, not at the far end of its longest way.
        columns[last - depth[node]].append(node)
    columns = [column for column in columns if column]
    for sweep in range(_SWEEPS):
        order = {node: index / len(column) for column in columns for index, node in enumerate(column)}
        neighbours = targets if sweep % 2 else sources
        for column in columns:
            column.sort(key=lambda node: (_mean(order, neighbours[node], order[node]), node))
            for index, node in enumerate(column):
                order[node] = index / len(column)
    alone = sorted(node for node in nodes if not targets[node] and not sources[node])
    height = max((len(column) for column in columns), default=20)
    return columns + [alone[start : start + height] for start in range(0, len(alone), height)]


def _mean(order: Mapping[str, float], neighbours: Sequence[str], own: float) -> float:
    return sum(order[node] for node in neighbours) / len(neighbours) if neighbours else own


def svg(manifests: Manifests, title: str, given: Given | None = None) -> str:
    """The picture; the same objects always give the same text. What is referred to and not rendered is dashed."""
    connections = edges(manifests, given)
    rendered = sorted({manifest.id for manifest in manifests})
    missing = sorted({edge.target for edge in connections} - set(rendered))
    columns = layers([*rendered, *missing], connections)
    tallest = max((len(column) for column in columns), default=0)
    height = tallest * _ROW + 2 * _MARGIN + 28
    width = max(len(columns), 1) * _COLUMN - (_COLUMN - _BOX_WIDTH) + 2 * _MARGIN
    at = {}
    for number, column in enumerate(columns):
        top = _MARGIN + 28 + (tallest - len(column)) * _ROW / 2
        for index, node in enumerate(column):
            at[node] = (_MARGIN + number * _COLUMN, top + index * _ROW)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" viewBox="0 0 {width} {height:g}" '
        'font-family="system-ui, sans-serif">'
    )
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#64748b"/></marker></defs>'
    )
    lines = [
        head,
        f"<title>{escape(title)}</title>",
        arrow,
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN}" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    lines += [_edge(edge, at[edge.source], at[edge.target]) for edge in connections]
    lines += [_box(node, *at[node], missing=node in missing) for column in columns for node in column]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _edge(edge: Edge, source: tuple[float, float], target: tuple[float, float]) -> str:
    right = target[0] > source[0]
    x1, y1 = source[0] + (_BOX_WIDTH if right else 0), source[1] + _BOX_HEIGHT / 2
    x2, y2 = target[0] + (0 if right else _BOX_WIDTH), target[1] + _BOX_HEIGHT / 2
    bend = abs(x2 - x1) / 2 * (1 if right else -1)
    curve = f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    tip = escape(f"{edge.source} → {edge.target}: {', '.join(edge.paths)}")
    return (
        f'<path d="{curve}" fill="none" stroke="#64748b" stroke-opacity="0.55" marker-end="url(#arrow)">'
        f"<title>{tip}</title></path>"
    )


def _box(node: str, x: float, y: float, *, missing: bool) -> str:
    kind, _, name = node.partition("/")
    colour = next((colour for colour, kinds in _COLOURS.items() if kind in kinds), _OTHER_COLOUR)
    dashed = ' stroke-dasharray="5 4"' if missing else ""
    tip = f"{node}, not among the rendered objects" if missing else node
    shown = name if len(name) <= 32 else f"{name[:31]}…"
    return (
        f"<g><title>{escape(tip)}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" '
        f'fill="{"#ffffff" if missing else colour}" stroke="#475569"{dashed}/>'
        f'<text x="{x + 10:g}" y="{y + 14:g}" font-size="10" fill="#475569">{escape(kind)}</text>'
        f'<text x="{x + 10:g}" y="{y + 29:g}" font-size="12" fill="#0f172a">{escape(shown)}</text></g>'
    )


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `graph`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "graph",
        help="draw the objects and their references",
        description="Draw the objects of a chart and what they refer to as SVG. Point at an arrow to see the fields. "
        "Dashed objects are referred to and not rendered: someone else makes them.",
        epilog="example:\n  python -m chart_harness graph -f values/production.yaml --output objects.svg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_render_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: standard output)")
    parser.set_defaults(run=_graph)


def _graph(arguments: argparse.Namespace) -> int:
    side = options.side(arguments)
    picture = svg(side.render(), f"{side.chart.path.name}, {side.scenario.name}")
    if arguments.output is None:
        sys.stdout.write(picture)
    else:
        arguments.output.write_text(picture)
    return 0
