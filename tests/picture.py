"""The picture of docs/architecture.md: ranks, and the imports that are really there.

``python tests/picture.py`` writes it between its two markers. An import that follows from others
(a imports b, b imports c, so a -> c) is left out.
"""

from __future__ import annotations

from pathlib import Path

from test_architecture import KNOWN, PLUGINS, RANKS, ROOT, own, room

PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- picture: written by python tests/picture.py -->\n"
END = "<!-- end of picture -->\n"


def edges() -> dict[str, set[str]]:
    """The rooms that each room imports; folders of plug-ins are rooms too."""
    found: dict[str, set[str]] = {name: set() for name in {**RANKS, **PLUGINS}}
    for module in KNOWN:
        if (here := room(module)) in found:
            found[here] |= {room(other) for other in own(module)} - {here, ""}
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The fewest edges of an acyclic graph with the same reachability."""

    def reached(at: str) -> set[str]:
        return graph[at].union(*map(reached, graph[at]))

    return {at: to - set().union(*map(reached, to)) for at, to in graph.items()}


def picture() -> str:
    """A mermaid flowchart: one box a rank, the highest first, and an arrow to what is imported."""
    ranks: dict[int, list[str]] = {}
    for name, rank in {**RANKS, **PLUGINS}.items():
        ranks.setdefault(rank, []).append(name)
    lines = ["```mermaid", "flowchart TD"]
    for rank, names in sorted(ranks.items(), reverse=True):
        boxes = [f"{n}[{n}/]" if n in ("tasks", "methods") else n for n in names]
        lines += [f'  subgraph rank{rank}["rank {rank}"]', f"    {' & '.join(boxes)}", "  end"]
    for at, to in reduced(edges()).items():
        if to:
            lines.append(f"  {at} --> {' & '.join(sorted(to))}")
    return "\n".join([*lines, "```", ""])


def page() -> str:
    """The page with a fresh picture."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{picture()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    Path(PAGE).write_text(page(), encoding="utf-8")
