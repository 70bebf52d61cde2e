"""The report of a search run: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tracemalloc
import urllib.request
import zlib
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import floor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from logs import write_log

from josh_search import report
from josh_search.report import write_report
from toolwoz_gym.records import write_sealed
from toolwoz_gym.types import UsageError

HOSTILE = (
    "</script><script>document.title = 'owned'</script><!-- <script> "
    "<img src=x onerror=\"document.title = 'owned'\"> \ud800 &lt;b&gt; \x00 " + "w" * 3000
)
AREAS = ("north", "south", "east", "west", "centre")
HOTELS = ("The Grey Heron", "Mill House", "Arden Lodge", "The Copper Kettle", "Old Station Inn")
CHROMIUM_FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-dev-shm-usage",
    "disable-quic",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "no-first-run",
    "window-size=1400,900",
)
WORDS = ("Is there parking?", "For three nights, please.", "And a train on Sunday?", "Thank you!")


def random_tree(seed: int, *, beam: int = 8, limit: int = 15, hit: float = 0.02) -> dict[str, Any]:
    """Play the search's own rules with dice for agent and customer; returns a tree's record."""
    rng = Random(seed)
    names = ["search_hotel", "book_hotel", "search_train", "book_train"][: rng.choice((2, 3, 4))]
    goals = [f"{name}(area={rng.choice(AREAS)})" for name in names]
    opening = {"role": "user", "content": "Hello, I need a place to stay."}
    root = {"id": 0, "parent": None, "step": None, "state": "root", "collapsed": False}
    marks: dict[str, Any] = {"met": [], "successful": False, "golden": False, "outcome": None}
    nodes: list[dict[str, Any]]
    nodes = [{**root, "messages": [opening], **marks, "usage": {"prompt": 0, "completion": 0}}]
    live, outstanding, step = [0], list(range(len(goals))), 0

    def mark(node: int | None, name: str) -> None:
        while node is not None:
            nodes[node][name] = True
            node = nodes[node]["parent"]

    while live and outstanding and step < limit:
        parents = [leaf for leaf in live for _ in range(2 if 2 * len(live) <= beam else 1)]
        live, hits = [], []
        for parent in parents:
            nodes[parent]["state"] = "expanded" if parent else "root"
            node = _turn(rng, len(nodes), parent, step)
            if node["outcome"] is None and rng.random() < hit * (1 + step / 4):
                node["met"] = [rng.choice(outstanding)]
                hits.append(node["id"])
            nodes.append(node)
            live.append(node["id"])
        for node in hits:
            mark(node, "successful")
        if hits:
            target = hits[0]
            mark(target, "golden")
            nodes[target]["collapsed"] = True
            outstanding = [g for g in outstanding if g not in nodes[target]["met"]]
            for leaf in live:
                nodes[leaf]["state"] = "live" if leaf == target else "pruned"
            live = [target]
        for leaf in list(live):
            ended = rng.random() < 0.04 or (not outstanding and rng.random() < 0.5)
            word = "Bye. END_CONVERSATION" if ended else rng.choice(WORDS)
            nodes[leaf]["messages"].append({"role": "user", "content": word})
            if ended:
                nodes[leaf]["state"] = "over"
                nodes[leaf]["outcome"] = "failure" if outstanding else "success"
                live.remove(leaf)
        step += 1
    met = [g for g in range(len(goals)) if g not in outstanding]
    prompt = sum(node["usage"]["prompt"] for node in nodes)
    completion = sum(node["usage"]["completion"] for node in nodes)
    return {
        "key": f"builtin-train-{seed:06d}/0",
        "task_id": f"builtin-train-{seed:06d}",
        "trial": 0,
        "seed": seed,
        "instruction": "You are looking for a place to stay in the north. The hotel should be "
        "moderate and should have free parking. Once you find it, book it for 3 people and "
        "2 nights from sunday. You also need a train to the city.",
        "goals": goals,
        "solved": not outstanding,
        "progress": len(met) / len(goals),
        "goals_met": met,
        "steps": step,
        "usage": {
            "agent": {"prompt": prompt, "completion": completion},
            "user": {"prompt": 0, "completion": 0},
        },
        "nodes": nodes,
    }


def _turn(rng: Random, number: int, parent: int, step: int) -> dict[str, Any]:
    """Return a live node: some calls, some of them malformed, and a reply."""
    messages: list[dict[str, Any]] = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        if rng.random() < 0.1:
            why = "not valid JSON (Expecting ',' delimiter: line 1 column 31 (char 30))"
            messages.append({"role": "assistant", "content": '{"name": search', "error": why})
            messages.append({"role": "tool", "content": f"Error: {why}"})
            continue
        arguments = {"area": rng.choice(AREAS), "pricerange": "moderate", "parking": "yes"}
        call = {"name": "search_hotel", "arguments": arguments}
        cost = {"prompt": 400 + 60 * step, "completion": 24}
        messages.append({"role": "assistant", "call": call, "raw": json.dumps(call), "usage": cost})
        found = [{**arguments, "name": n, "stars": "4"} for n in HOTELS[: rng.randrange(5)]]
        messages.append({"role": "tool", "name": "search_hotel", "content": json.dumps(found)})
    said = f"{rng.choice(HOTELS)} is in the {rng.choice(AREAS)}. Shall I book a room for you?"
    thought = f"Thought: they want a room.\n{said}" if rng.random() < 0.2 else said
    messages.append({"role": "assistant", "content": said, "raw": thought})
    return {
        "id": number,
        "parent": parent,
        "step": step,
        "state": "live",
        "collapsed": False,
        "messages": messages,
        "met": [],
        "successful": False,
        "golden": False,
        "outcome": None,
        "usage": {"prompt": (400 + 60 * step) * len(messages), "completion": 24 * len(messages)},
    }


def write_run(folder: Path, trees: list[dict[str, Any]]) -> Path:
    """Write the records of a finished run; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"options": {"strategy": "go_explore"}, "world": "b1946ac92492"}
    write_sealed(folder / "config.json", config)
    write_log(folder / "trees.jsonl", trees)
    totals = {
        who: {part: sum(t["usage"][who][part] for t in trees) for part in ("prompt", "completion")}
        for who in ("agent", "user")
    }
    summary = {
        "run": folder.name,
        "tasks": len(trees),
        "finished": len(trees),
        "solved": sum(t["solved"] for t in trees),
        "goals_met": sum(len(t["goals_met"]) for t in trees),
        "goals_total": sum(len(t["goals"]) for t in trees),
        "progress": sum(len(t["goals_met"]) for t in trees) / sum(len(t["goals"]) for t in trees),
        "usage": totals,
        "leaves": sum(len(t["nodes"]) - 1 for t in trees),
        "rows": {
            "kto": {"good": 20, "bad": 31},
            "sft": 20,
            "dpo": 18,
            "dropped": {"messages of golden paths that were cut off": 2},
        },
        "infra_error": 3,
        "seconds": 412.0,
        "model": "Qwen/Qwen2.5-0.5B-Instruct",
        "world": "b1946ac92492",
    }
    write_sealed(folder / "summary.json", summary)
    return folder


@dataclass
class Embedded:
    """The data of a report, read back from its script elements."""

    run: dict[str, Any]
    tasks: list[dict[str, Any]]
    nodes: list[list[dict[str, Any]]]


def embedded(page: Path) -> Embedded:
    found: dict[str, list[Any]] = {"run": [], "task": [], "nodes": []}
    script = r'<script type="(?:application/json|text/plain)" class="(\w+)">(.*?)</script>'
    for name, text in re.findall(script, page.read_text("utf-8")):
        data = zlib.decompress(b64decode(text)) if name == "nodes" else text
        found[name].append(json.loads(data))
    (run,) = found["run"]
    return Embedded(run, found["task"], found["nodes"])


def test_every_task_and_node_is_embedded(tmp_path: Path) -> None:
    trees = [random_tree(seed) for seed in range(4)]
    data = embedded(write_report(write_run(tmp_path / "demo", trees)))
    assert data.run["run"] == "demo"
    assert data.run["summary"]["goals_met"] == sum(len(t["goals_met"]) for t in trees)
    assert [task["key"] for task in data.tasks] == [tree["key"] for tree in trees]
    for task, nodes, tree in zip(data.tasks, data.nodes, trees, strict=True):
        assert task["nodes"] == len(tree["nodes"])
        assert [node["id"] for node in nodes] == [node["id"] for node in tree["nodes"]]
        for shown, node in zip(nodes, tree["nodes"], strict=True):
            assert shown["usage"] == node["usage"]
            assert len(shown["messages"]) == len(node["messages"])
            for name in ("met", "golden", "outcome", "parent"):
                assert shown.get(name, node[name]) == node[name]


def test_the_curve_says_after_how_many_written_tokens_goals_were_met(tmp_path: Path) -> None:
    def tree(goals_met: list[int], solved: bool, *nodes: dict[str, Any]) -> dict[str, Any]:
        numbered = [{"id": number, **node} for number, node in enumerate(nodes)]
        return random_tree(0) | {"goals_met": goals_met, "solved": solved, "nodes": numbered}

    def node(parent: int | None, cost: int, customer: int = 0, **more: Any) -> dict[str, Any]:
        said = {"role": "user", "content": "Yes.", "usage": {"prompt": 50, "completion": customer}}
        usage = {"prompt": 700, "completion": cost}
        return {"parent": parent, "met": [], "golden": False, "outcome": None} | {
            "usage": usage,
            "messages": [said],
            **more,
        }

    guided = tree(
        [0, 2],
        True,
        node(None, 0, golden=True),
        node(0, 100),
        node(0, 10, customer=5, met=[2], golden=True),
        node(0, 7, met=[0, 1, 2]),  # not kept, but it was the best path then
        node(2, 20, golden=True),
        node(4, 30, met=[0], golden=True),
        node(5, 40),
    )
    terminal = tree(
        [0, 1],
        True,
        node(None, 0, golden=True),
        node(0, 10, golden=True),
        node(0, 10, golden=True),
        node(1, 10, golden=True, outcome="success"),
        node(2, 10, golden=True, outcome="success"),
    )
    unsolved = tree([1, 2], False, node(None, 0), node(0, 9, met=[2]), node(1, 9, met=[1]))
    trees = [guided, terminal, unsolved]
    data = embedded(
        write_report(write_run(tmp_path, [{**t, "key": str(n)} for n, t in enumerate(trees)]))
    )
    assert [(task["goals_after"], task["solved_after"]) for task in data.tasks] == [
        ([115, 122], 172),
        ([30, 30], 30),
        ([9, 18], None),
    ]


def test_seeds_are_kept_exactly(tmp_path: Path) -> None:
    tree = random_tree(0) | {"seed": 2**63 - 25}
    tree["nodes"][1]["seed"] = 2**53 + 1
    data = embedded(write_report(write_run(tmp_path, [tree])))
    assert data.tasks[0]["seed"] == "9223372036854775783"
    assert data.nodes[0][1]["seed"] == "9007199254740993"


def test_memory_does_not_grow_with_the_number_of_trees(tmp_path: Path) -> None:
    tree = random_tree(7)

    def peak(count: int) -> int:
        run = write_run(tmp_path / str(count), [tree] * count)
        tracemalloc.start()
        write_report(run)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is imported and kept for good
    assert peak(60) < 1.2 * peak(6)


def test_raw_is_kept_only_where_it_says_more_than_the_action(tmp_path: Path) -> None:
    call = {"name": "search_hotel", "arguments": {"area": "north"}}
    said = {"role": "assistant", "content": "Hello."}
    tree = random_tree(0)
    tree["nodes"][1]["messages"] = [
        {"role": "assistant", "call": call, "raw": json.dumps(call, indent=4)},
        {**said, "raw": " Hello. "},
        {**said, "raw": "Thought: be polite.\nHello."},
        {"role": "assistant", "content": "{", "raw": "{", "error": "not valid JSON"},
    ]
    shown = embedded(write_report(write_run(tmp_path, [tree]))).nodes[0][1]
    assert shown["messages"] == [
        {"role": "assistant", "call": call},
        said,
        {**said, "raw": "Thought: be polite.\nHello."},
        {"role": "assistant", "content": "{", "error": "not valid JSON"},
    ]


def test_the_file_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path, [random_tree(0)])).read_text("utf-8")
    assert set(re.findall(r"https?://[^\s\"'<]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"\b(?:src|href)\s*=|@import|url\(|<link", text)
    assert "default-src 'none'" in text


def test_hostile_text_stays_inside_its_script_element(tmp_path: Path) -> None:
    tree = random_tree(0)
    tree["instruction"] = tree["task_id"] = tree["nodes"][0]["messages"][0]["content"] = HOSTILE
    run = write_run(tmp_path, [tree])
    write_sealed(run / "config.json", {"model": HOSTILE})
    page = write_report(run)
    text = page.read_text("utf-8")
    plain = write_report(write_run(tmp_path / "plain", [random_tree(0)])).read_text("utf-8")
    assert text.count("<") == plain.count("<")
    data = embedded(page)
    assert data.tasks[0]["instruction"] == HOSTILE
    assert data.nodes[0][0]["messages"][0]["content"] == HOSTILE


def test_text_that_looks_like_the_place_for_data_is_only_text(tmp_path: Path) -> None:
    tree = random_tree(0)
    tree["instruction"] = "<!-- data -->"
    data = embedded(write_report(write_run(tmp_path, [tree])))
    assert data.tasks[0]["instruction"] == "<!-- data -->"


def test_a_run_under_way_needs_no_trees_and_no_summary(tmp_path: Path) -> None:
    write_sealed(tmp_path / "config.json", {"options": {}})
    data = embedded(write_report(tmp_path))
    about = {"run": tmp_path.name, "config": {"options": {}}, "summary": {}}
    assert data == Embedded(about, [], [])


def test_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json"):
        write_report(tmp_path)
    write_sealed(tmp_path / "config.json", {"options": {}})
    (tmp_path / "trees.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match=r"trees\.jsonl, line 1"):
        write_report(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "trees.jsonl"}


def test_text_and_lines_stand_out_in_both_colour_schemes() -> None:
    template = Path(report.__file__).with_name("report_template.html").read_text("utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", template, re.DOTALL)
    ]
    surfaces = ("panel", "sunk", "pick-wash")
    bubbles = ("page", "customer", "agent")
    text = {
        "text": surfaces + bubbles,
        "quiet": surfaces + bubbles,
        "good-ink": surfaces,
        "gold-ink": ("panel", "sunk", "gold-wash"),
        "bad-ink": ("panel", "bad-wash"),
        "pick": ("panel", "sunk"),
    }
    lines = dict.fromkeys(("gold", "good", "line-strong", "pick"), ("panel", "sunk"))
    assert len(schemes) == 2
    for scheme in schemes:
        for wanted, pairs in ((4.5, text), (3.0, lines)):  # WCAG 2, level AA
            for ink, papers in pairs.items():
                for paper in papers:
                    assert contrast(scheme[ink], scheme[paper]) >= wanted, (ink, paper)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, by WCAG 2."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


class Browser:
    """A browser behind WebDriver: as much of the protocol as these tests need."""

    def __init__(self, port: int, chromium: str, profile: Path) -> None:
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._base = f"http://127.0.0.1:{port}/session"
        arguments = [f"--{name}" for name in CHROMIUM_FLAGS] + [f"--user-data-dir={profile}"]
        options = {"binary": chromium, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        body = {"capabilities": {"alwaysMatch": wanted}}
        self._base += "/" + self._send("POST", "", body)["sessionId"]

    def open(self, page: Path) -> None:
        self._send("POST", "/url", {"url": page.as_uri()})
        self.settle()

    def settle(self) -> None:
        """Wait until a tree that is being unpacked is drawn, and the list has what is in sight."""
        frame = "await new Promise((r) => requestAnimationFrame(() => setTimeout(r)))"
        self.run(f"do {frame}; while (document.querySelector('[aria-busy]'))")

    def run(self, script: str) -> Any:
        """Run a script's text as the body of an async function; returns what it returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        self._send("POST", f"/element/{self._find(selector)}/click", {})
        self.settle()

    def type(self, selector: str, keys: str) -> None:
        self._send("POST", f"/element/{self._find(selector)}/value", {"text": keys})

    def text(self, selector: str) -> str:
        """Return the text of an element as a reader sees it."""
        return str(self._send("GET", f"/element/{self._find(selector)}/text"))

    def complaints(self) -> list[str]:
        """Return what the page logged since the last time it was asked."""
        entries = self._send("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._send("POST", "/goog/cdp/execute", command)

    def close(self) -> None:
        self._send("DELETE", "")

    def _find(self, selector: str) -> str:
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        return str(*found.values())

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=method)
        with self._opener.open(request, timeout=60) as response:
            return json.load(response)["value"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        if os.environ.get("TOOLWOZ_REQUIRE_BROWSER"):
            pytest.fail("TOOLWOZ_REQUIRE_BROWSER is set, but chromium or chromedriver is missing")
        pytest.skip("no chromium with chromedriver is installed")
    command = [driver, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = (re.search(r"started successfully on port (\d+)", x) for x in process.stdout)
            port = next(filter(None, started))
            session = Browser(int(port[1]), chromium, tmp_path_factory.mktemp("profile"))
            try:
                yield session
            finally:
                session.close()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def trees() -> list[dict[str, Any]]:
    found = [random_tree(seed) for seed in range(6, 14)]
    assert {tree["solved"] for tree in found} == {True, False}
    assert not found[0]["solved"]
    return found


@pytest.fixture
def page(browser: Browser, tmp_path: Path, trees: list[dict[str, Any]]) -> Browser:
    browser.open(write_report(write_run(tmp_path / "demo", trees)))
    assert browser.complaints() == []
    return browser


def shown_tasks(page: Browser) -> list[str]:
    return page.run(  # type: ignore[no-any-return]
        "return [...document.querySelectorAll('#list .name')].map(e => e.textContent)"
    )


def longest_story(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """The tree that the page opens with: of the solved ones, the first with the most steps."""
    return max((tree for tree in trees if tree["solved"]), key=lambda tree: tree["steps"])


@pytest.mark.browser
def test_the_first_screen_shows_the_solved_tree_with_the_longest_story(
    page: Browser, trees: list[dict[str, Any]]
) -> None:
    tree = longest_story(trees)
    last = max(node["id"] for node in tree["nodes"] if node["golden"])
    assert page.text("#task h2") == tree["task_id"]
    assert page.text("#dialogue h2") == f"Step {tree['steps']} · node {last}"
    assert page.text("#instruction") == tree["instruction"]
    assert page.text("#run h1") == "go_explore search: demo"
    assert "dropped 2 messages of golden paths that were cut off" in page.text("#run")
    assert "Lost trees\n3\ninfrastructure errors" in page.text("#run")
    assert page.run("return document.querySelectorAll('.node').length") == len(tree["nodes"])


@pytest.mark.browser
def test_the_list_is_filtered_by_verdict_and_words(
    page: Browser, trees: list[dict[str, Any]]
) -> None:
    page.run("document.querySelector('[value=unsolved]').click()")
    assert shown_tasks(page) == [tree["task_id"] for tree in trees if not tree["solved"]]
    page.run("document.querySelector('[value=all]').click()")
    page.type("#search", "000009 hotel")
    assert shown_tasks(page) == ["builtin-train-000009"]
    page.type("#search", "nothing has this")
    assert shown_tasks(page) == []
    assert page.text("#status") == "No task matches."


@pytest.mark.browser
def test_dialogues_are_searched_when_asked(page: Browser, trees: list[dict[str, Any]]) -> None:
    def says(node: dict[str, Any], words: Iterable[str]) -> bool:
        said = json.dumps(node["messages"]).lower()
        return all(word in said for word in words)

    words = ("thank", "heron")
    found = [tree["task_id"] for tree in trees if any(says(node, words) for node in tree["nodes"])]
    assert 0 < len(found) < len(trees)
    page.type("#search", "Thank HERON")
    assert shown_tasks(page) == []
    page.run("document.querySelector('#in-dialogues').checked = true; await filterList()")
    assert shown_tasks(page) == found
    assert page.text("#status") == f"{len(found)} task{'s'[: len(found) > 1]} of {len(trees)}"
    page.click("#list button")
    assert says({"messages": page.text("#chat .own")}, words)
    assert page.run("return document.querySelectorAll('.said-it').length") > 0


@pytest.mark.browser
def test_the_list_can_be_put_in_another_order(page: Browser, trees: list[dict[str, Any]]) -> None:
    order = "document.querySelector('#order').value = '{}'; filterList()"
    page.run(order.format("tokens"))
    spent = {tree["task_id"]: sum(tree["usage"]["agent"].values()) for tree in trees}
    assert shown_tasks(page) == sorted(spent, key=lambda task: -spent[task])
    page.run(order.format("finished"))
    assert shown_tasks(page) == [tree["task_id"] for tree in trees]


@pytest.mark.browser
def test_the_slider_says_what_stopping_earlier_would_have_found(
    page: Browser, trees: list[dict[str, Any]]
) -> None:
    solved = sum(tree["solved"] for tree in trees)
    met, goals = (sum(len(tree[name]) for tree in trees) for name in ("goals_met", "goals"))
    caption = page.text("#curves figcaption")
    assert f": {floor(100 * met / goals + 0.5)} % of goals met, " in caption
    assert f", {floor(100 * solved / len(trees) + 0.5)} % of tasks solved, " in caption
    page.type("#curves input", "\ue011")  # Home
    assert "stopped after 0 tokens: 0 % of goals met" in page.text("#curves figcaption")


@pytest.mark.browser
def test_a_click_on_a_node_shows_its_dialogue(page: Browser, trees: list[dict[str, Any]]) -> None:
    page.click('#list [data-task="0"]')
    leaf = next(n for n in trees[0]["nodes"] if n["state"] in ("pruned", "over"))
    page.click(f'.node[data-node="{leaf["id"]}"]')
    assert page.text("#dialogue h2") == f"Step {leaf['step'] + 1} · node {leaf['id']}"
    assert page.run("return document.querySelectorAll('#chat .turn').length") == leaf["step"] + 2
    assert page.run("return document.querySelectorAll('#chat .own').length") == 1
    own = page.run("return document.querySelector('#chat .own').textContent")
    chat = page.run("return document.querySelector('#chat').textContent")
    assert chat.startswith("OpeningCustomerHello, I need a place to stay.Step 1")
    for message in leaf["messages"]:
        if "call" in message:
            assert "".join(x + y for x, y in message["call"]["arguments"].items()) in own
        elif not message["content"].startswith("[{"):
            assert message["content"] in own
        else:
            assert json.dumps(json.loads(message["content"]), indent=1) in own


@pytest.mark.browser
def test_a_node_shows_its_seed_visits_and_costs(page: Browser, tmp_path: Path) -> None:
    tree = random_tree(0) | {"seed": 2**60 + 1, "strategy": "josh", "branch": "turn"}
    said = {"role": "assistant", "content": "Hello.", "logprob": -0.5}
    said["usage"] = {"prompt": 1200, "completion": 7}
    tree["nodes"][1] |= {"seed": 2**62 + 1, "visits": 3, "messages": [said]}
    page.open(write_report(write_run(tmp_path / "costs", [tree])))
    page.run("chooseNode(nodes[1])")
    task = page.text("#task header")
    assert "strategy josh · branches at each turn · seed 1152921504606846977" in task
    assert page.text("#cost").endswith("seed 4611686018427387905")
    assert "reached 3 times" in page.text("#marks")
    assert page.text(".own .who").split("\n") == ["Agent", "1,200 + 7 tokens · chance 61 %"]
    assert page.text('.node[data-node="1"] .visits') == "×3"


@pytest.mark.browser
def test_a_thousand_trees_are_listed_found_and_read(browser: Browser, tmp_path: Path) -> None:
    shapes = [random_tree(seed, limit=4) for seed in range(10)]
    trees = [
        shapes[i % 10] | {"task_id": f"task-{i:04d}", "key": f"task-{i:04d}/0"} for i in range(1000)
    ]
    browser.open(write_report(write_run(tmp_path, trees)))
    assert browser.complaints() == []
    assert len(shown_tasks(browser)) < 300
    for _ in range(12):
        browser.run("const list = document.querySelector('#list'); list.scrollTop = 1e9")
        browser.settle()
    assert shown_tasks(browser) == [tree["task_id"] for tree in trees]
    browser.run("document.querySelector('[value=unsolved]').click()")
    browser.type("#search", "0997")
    assert shown_tasks(browser) == ([] if trees[997]["solved"] else ["task-0997"])
    browser.run("document.querySelector('[value=all]').click()")
    assert shown_tasks(browser) == ["task-0997"]
    browser.click("#list button")
    assert browser.text("#task h2") == "task-0997"
    leaf = trees[997]["nodes"][-1]
    browser.click(f'.node[data-node="{leaf["id"]}"]')
    said = [m for m in leaf["messages"] if m["role"] == "assistant"][-1]
    assert said["content"] in browser.text("#chat .own")


@pytest.mark.browser
def test_a_deep_tree_with_branches_from_anywhere(browser: Browser, tmp_path: Path) -> None:
    rng = Random(3)
    tree = random_tree(0)
    depth = [0]
    nodes = tree["nodes"][:1]
    for number in range(1, 200):
        parent = rng.randrange(number) if rng.random() < 0.2 else number - 1
        depth.append(depth[parent] + 1)
        nodes.append(random_tree(number)["nodes"][1] | {"id": number, "parent": parent})
        nodes[-1] |= {"step": depth[parent], "golden": False, "collapsed": rng.random() < 0.1}
    browser.open(write_report(write_run(tmp_path, [tree | {"nodes": nodes, "steps": max(depth)}])))
    assert browser.complaints() == []
    assert browser.run("return new Set(nodes.map((n) => n.x + ' ' + n.y)).size") == len(nodes)
    assert browser.run("return nodes.map((n) => n.column)") == depth
    box = "document.querySelector('#tree-box').getBoundingClientRect()"
    for number in (depth.index(max(depth)), 0):
        browser.run(f"chooseNode(nodes[{number}])")
        place = f"const n = nodes[{number}].element.querySelector('.shape').getBoundingClientRect()"
        assert browser.run(f"{place}, b = {box}; return n.left >= b.left && n.right <= b.right")


@pytest.mark.browser
def test_a_malformed_output_is_shown_with_its_error(page: Browser, tmp_path: Path) -> None:
    tree = random_tree(0)
    tree["nodes"][1]["messages"] = [
        {"role": "assistant", "content": "{oops", "error": "not valid JSON"},
        {"role": "tool", "content": "Error: not valid JSON"},
    ]
    page.open(write_report(write_run(tmp_path / "malformed", [tree])))
    page.run("chooseNode(nodes[1])")
    assert page.text(".own .malformed").split("\n") == [
        "⚠ Malformed output",
        "{oops",
        "Error: not valid JSON",
    ]


@pytest.mark.browser
def test_keys_walk_the_tree(page: Browser, trees: list[dict[str, Any]]) -> None:
    tree = longest_story(trees)
    golden = [node["id"] for node in tree["nodes"] if node["golden"]]
    left, right, enter = "\ue012", "\ue014", "\ue007"
    page.type('.node[tabindex="0"]', left)
    assert page.text("#dialogue h2") == f"Step {tree['steps'] - 1} · node {golden[-2]}"
    page.type('.node[tabindex="0"]', right)
    assert page.text("#dialogue h2") == f"Step {tree['steps']} · node {golden[-1]}"
    page.type('.node[tabindex="0"]', enter)
    assert page.run("return document.activeElement.id") == "chat"


@pytest.mark.browser
def test_keys_walk_the_list(page: Browser, trees: list[dict[str, Any]]) -> None:
    down, up, enter = "\ue015", "\ue013", "\ue007"
    page.type("#list button", down + down + up + enter)
    page.settle()
    assert page.text("#task h2") == trees[1]["task_id"]
    assert page.text("#list [aria-current] .name") == trees[1]["task_id"]


@pytest.mark.browser
def test_the_golden_path_is_straight_and_no_node_lies_on_another(page: Browser) -> None:
    for seed in range(20):
        nodes = random_tree(seed, hit=0.1)["nodes"]
        places = page.run(f"return layOut({json.dumps(nodes)}).map(n => [n.column, n.row])")
        assert len({tuple(place) for place in places}) == len(places)
        assert {row for n, (_, row) in zip(nodes, places, strict=True) if n["golden"]} <= {0}
        assert max(row for _, row in places) < 8


@pytest.mark.browser
def test_hostile_text_is_shown_and_not_obeyed(browser: Browser, tmp_path: Path) -> None:
    tree = random_tree(0)
    tree["instruction"] = tree["task_id"] = HOSTILE
    for node in tree["nodes"]:
        node["messages"] = [
            {"role": "user", "content": HOSTILE},
            {"role": "assistant", "content": HOSTILE, "error": HOSTILE, "raw": HOSTILE + "!"},
            {"role": "tool", "name": HOSTILE, "content": HOSTILE},
            {"role": "assistant", "call": {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}},
        ]
    run = write_run(tmp_path / "hostile", [tree])
    write_sealed(run / "config.json", {"model": HOSTILE})
    browser.open(write_report(run))
    assert browser.run("return document.title") == "hostile · Search"
    assert browser.run("return document.querySelectorAll('img').length") == 0
    said = "document.querySelector('#chat .said').textContent"
    assert browser.run(f"return {said}.includes('</script><script>document.title')")
    for width in (1400, 400):
        browser.resize(width, 900)
        assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.resize(1400, 900)
    assert browser.complaints() == []


@pytest.mark.browser
def test_a_run_under_way_shows_the_figures_of_its_trees(page: Browser, tmp_path: Path) -> None:
    with_summary = (
        page.text("#run .figure:nth-of-type(2)"),
        page.text("#run .figure:nth-of-type(3)"),
    )
    (tmp_path / "demo" / "summary.json").unlink()
    page.open(write_report(tmp_path / "demo"))
    assert page.complaints() == []
    without = page.text("#run .figure:nth-of-type(2)"), page.text("#run .figure:nth-of-type(3)")
    assert without == with_summary


@pytest.mark.browser
def test_an_empty_run_says_so(browser: Browser, tmp_path: Path) -> None:
    write_sealed(tmp_path / "config.json", {"options": {}})
    browser.open(write_report(tmp_path))
    assert browser.text("#empty").startswith("No search tree has been finished yet")
    assert browser.run("return document.querySelector('main').hidden") is True
    assert browser.complaints() == []
