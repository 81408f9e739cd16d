"""Graphs as text: the generated Python, without the lines that only release dead values."""

from __future__ import annotations

import re

from torch import fx

from umcompress.graph.lower import python_source

_RELEASE = re.compile(r";\s+(?:\w+ = )+None.*$")


def print_graph(graph: fx.Graph) -> str:
    """The forward that lowering this graph would run. The same graph always gives the same text."""
    source, _ = python_source(graph)
    start = source.index("def forward")
    lines = (_RELEASE.sub("", line).rstrip() for line in source[start:].splitlines())
    return "\n".join(line for line in lines if line) + "\n"
