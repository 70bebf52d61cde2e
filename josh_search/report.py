"""The report of a search run: one HTML file that shows every tree, read straight from disk.

The page is ``report_template.html`` with the run's data put in: a script element for the run, and
two for each tree. The first says as JSON what the list of tasks needs; the second holds the nodes,
deflated and in base64, which the page unpacks when that tree is looked at. (As plain JSON the file
would be five times as large.) What was said in a dialogue is hostile: here it cannot leave its
script element, and the page writes it as text, never as markup.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolwoz_gym.actions import parse_action
from toolwoz_gym.records import dump, message_from_json, read_log, read_sealed, replacing
from toolwoz_gym.types import Usage

_TEMPLATE = Path(__file__).with_name("report_template.html")
_DATA = "<!-- data -->"
"""Where in the template the run's data goes."""


def write_report(run: Path) -> Path:
    """Write ``report.html`` into the folder of a search run, finished or under way.

    One tree is in memory at a time.

    Args:
        run: The folder: ``config.json``, and what there is so far of ``trees.jsonl`` and
            ``summary.json``.

    Returns:
        The path of the report.

    Raises:
        UsageError: The folder holds no run, or one of its files is damaged.
    """
    about = {
        "run": run.resolve().name,
        "config": read_sealed(run / "config.json"),
        "summary": read_sealed(run / "summary.json") if (run / "summary.json").exists() else {},
    }
    report = run / "report.html"
    with replacing(report) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(_parts(about, run / "trees.jsonl"))
    return report


def _parts(about: Mapping[str, Any], trees: Path) -> Iterator[str]:
    """Yield the text of the page, piece by piece."""
    before, after = _TEMPLATE.read_text("utf-8").split(_DATA)
    yield before
    yield _json_script("run", about)
    for tree in read_log(trees) if trees.exists() else ():
        nodes = tree.pop("nodes")
        task = {**tree, **_curve(tree, nodes), "seed": str(tree["seed"]), "nodes": len(nodes)}
        yield _json_script("task", task)
        packed = b64encode(zlib.compress(dump([_slim_node(n) for n in nodes]).encode("ascii")))
        yield f'<script type="text/plain" class="nodes">{packed.decode("ascii")}</script>\n'
    yield after


def _json_script(name: str, data: Any) -> str:
    """Return data as an inert script element: without ``<``, no text can end or open anything."""
    text = dump(data).replace("<", "\\u003c")
    return f'<script type="application/json" class="{name}">{text}</script>\n'


def _curve(tree: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how a tree got on, with its nodes in the order in which they were played.

    Returns:
        goals_after: For the first goal met, the second and so on, all on one path: the tokens that
            agent and customer had written by then; None where a server did not say.
        solved_after: The same for the solution; None when the tree has none.
    """
    golden = [node for node in nodes if node["golden"]]
    ends = {node["id"] for node in golden} - {node["parent"] for node in golden}
    usage = Usage()
    met: dict[int | None, frozenset[int]] = {None: frozenset()}
    goals_after: list[int | None] = []
    solved_after = None
    for node in nodes:
        customer = [m["usage"] for m in node["messages"] if m["role"] == "user" and "usage" in m]
        usage = sum((Usage(**each) for each in [node["usage"], *customer]), usage)
        written = usage.completion
        met[node["id"]] = met[node["parent"]].union(node["met"])
        reached = min(len(met[node["id"]]), len(tree["goals_met"]))
        if node["id"] in ends:
            reached = len(tree["goals_met"])
            if tree["solved"] and solved_after is None:
                solved_after = written
        goals_after += [written] * (reached - len(goals_after))
    return {"goals_after": goals_after, "solved_after": solved_after}


def _slim_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node without what the page can do without."""
    slim = {name: v for name, v in node.items() if v is not None and v is not False and v != []}
    if "seed" in slim:  # too large for a number of JavaScript's
        slim["seed"] = str(slim["seed"])
    return {**slim, "messages": [_slim_message(m) for m in node["messages"]]}


def _slim_message(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without ``raw`` where that says nothing more."""
    slim = {name: value for name, value in data.items() if name != "raw"}
    if (raw := data.get("raw")) is not None:
        message, written = message_from_json(slim), parse_action(raw)
        if (written.content, written.call) != (message.content, message.call):
            slim["raw"] = raw
    return slim
