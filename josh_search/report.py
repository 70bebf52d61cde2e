"""The report of a search run: one HTML file that shows every tree, read straight from disk.

The page is ``report_template.html`` with the run's data put in as JSON: one script element for the
run and its list of tasks, and one for the nodes of each tree, which the page parses when that tree
is looked at. What was said in a dialogue is hostile: here it cannot leave its script element, and
the page writes it as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolwoz_gym.actions import parse_action
from toolwoz_gym.records import dump, message_from_json, read_jsonl, write_text
from toolwoz_gym.types import UsageError

_TEMPLATE = Path(__file__).with_name("report_template.html")
_DATA = "<!-- data -->"
"""Where in the template the run's data goes."""


def write_report(run: Path) -> Path:
    """Write ``report.html`` into the folder of a search run, finished or under way.

    Args:
        run: The folder: ``config.json``, and what there is so far of ``trees.jsonl`` and
            ``summary.json``.

    Returns:
        The path of the report.

    Raises:
        UsageError: The folder holds no run, or one of its files is damaged.
    """
    trees = run / "trees.jsonl"
    tasks, scripts = [], []
    for number, tree in enumerate(read_jsonl(trees) if trees.exists() else ()):
        nodes = [_slim_node(node) for node in tree.pop("nodes")]
        tasks.append(tree)
        scripts.append(_script(f"tree-{number}", nodes))
    summary = _read_json(run / "summary.json") if (run / "summary.json").exists() else {}
    index = {
        "run": run.resolve().name,
        "config": _read_json(run / "config.json"),
        "summary": summary,
        "tasks": tasks,
    }
    before, after = _TEMPLATE.read_text("utf-8").split(_DATA)
    report = run / "report.html"
    write_text(report, "".join([before, _script("run-data", index), *scripts, after]))
    return report


def _script(name: str, data: Any) -> str:
    """Return data as an inert script element: without ``<``, no text can end or open anything."""
    text = dump(data).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _slim_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node without what the page can do without: it is most of the file."""
    kept = {name: v for name, v in node.items() if v is not None and v is not False and v != []}
    return {**kept, "messages": [_slim_message(m) for m in node["messages"]]}


def _slim_message(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without its cost, and without ``raw`` where that says nothing more."""
    slim = {name: value for name, value in data.items() if name not in ("raw", "usage")}
    if (raw := data.get("raw")) is not None:
        message, written = message_from_json(slim), parse_action(raw)
        if (written.content, written.call) != (message.content, message.call):
            slim["raw"] = raw
    return slim


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} of a search run: {error}") from None
