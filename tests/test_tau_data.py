"""τ-bench is prepared from whatever it comes in, byte for byte, and nothing in it is ever run."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolwoz_gym.data import git_blob_id
from toolwoz_gym.tau_bench import data as module
from toolwoz_gym.tau_bench.data import (
    BLOBS,
    PREPARED,
    RETAIL_TEST,
    SPLITS,
    is_prepared,
    load_tau_bench,
    prepare_tau_bench,
    read_tau_bench,
)
from toolwoz_gym.tau_bench.domain import Scoring
from toolwoz_gym.tau_bench.literals import MAX_SOURCE, read_list, read_schema, read_tasks
from toolwoz_gym.types import ToolCall, ToolSpec, UsageError

# --- Python files, as τ-bench has them -------------------------------------------------------


class Plain:
    """Writes data as τ-bench does: one entry a line, double quotes."""

    def text(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    def group(self, opening: str, parts: list[str], closing: str) -> str:
        return opening + "".join(f"\n    {part}," for part in parts) + closing

    def value(self, value: Any) -> str:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return self.group("[", [self.value(v) for v in value], "]")
        if isinstance(value, dict):
            pairs = [f"{self.value(k)}: {self.value(v)}" for k, v in value.items()]
            return self.group("{", pairs, "}")
        return repr(value)

    def call(self, name: str, arguments: Mapping[str, str]) -> str:
        parts = [f"{argument}={value}" for argument, value in arguments.items()]
        return self.group(f"{name}(", parts, ")")

    def action(self, action: Mapping[str, Any]) -> str:
        return self.call("Action", {name: self.value(v) for name, v in action.items()})

    def task(self, task: Mapping[str, Any]) -> str:
        fields = {name: self.value(v) for name, v in task.items()}
        fields["actions"] = self.group("[", [self.action(a) for a in task["actions"]], "]")
        return self.call("Task", fields)


class Wild(Plain):
    """Writes data as only a fuzzer does: quotes, breaks, brackets and comments come by luck."""

    def __init__(self, seed: int) -> None:
        self.luck = Random(seed)

    def text(self, text: str) -> str:
        cuts = sorted(self.luck.randint(0, len(text)) for _ in range(self.luck.randint(0, 2)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return f"({self.space()}{' '.join(self.piece(p) for p in pieces)}{self.space()})"

    def piece(self, text: str) -> str:
        double = super().text(text)
        return self.luck.choice([double, f'""{double}""', repr(text)])

    def group(self, opening: str, parts: list[str], closing: str) -> str:
        inside = ",".join(f"{self.space()}{part}{self.space()}" for part in parts)
        comma = "," if parts and self.luck.random() < 0.5 else ""
        return f"{opening}{inside}{comma}{self.space()}{closing}"

    def space(self) -> str:
        return self.luck.choice(["", " ", "\n", "\r\n\t", " # Task('\n"])


def tasks_file(tasks: list[dict[str, Any]], variable: str, style: Plain) -> bytes:
    listed = style.group("[", [style.task(task) for task in tasks], "]")
    return f"from tau_bench.types import Action, Task\n\n{variable} = {listed}\n".encode()


def list_file(values: list[Any], variable: str, style: Plain) -> bytes:
    return f"# Copyright Sierra\n\n{variable} = {style.value(values)}\n".encode()


def tool_file(schema: Mapping[str, Any], style: Plain) -> bytes:
    """A class around a schema. What else it does would fail, were it run."""
    return (
        "import no_such_module\nfrom typing import Any, Dict\n\n\n"
        "class Name(no_such_module.Tool):\n"
        "    @staticmethod\n    def invoke(data: Dict[str, Any], **kwargs) -> str:\n"
        '        """A docstring."""\n        return "\\d" * (1 / 0)\n\n'
        "    @staticmethod\n    def get_info() -> Dict[str, Any]:\n"
        f"        return {style.value(schema)}\n\n\nraise SystemExit\n"
    ).encode()


def checkout(prepared: Mapping[str, bytes], style: Plain) -> dict[str, bytes]:
    """The published files that prepared ones come from, by path below ``envs/``."""
    files = {}
    for domain, splits in SPLITS.items():
        for table in module.TABLES[domain]:
            files[f"{domain}/data/{table}.json"] = prepared[f"{domain}/{table}.json"]
        for split, variable in splits.items():
            tasks = json.loads(prepared[f"{domain}/tasks_{split}.json"])
            files[f"{domain}/tasks_{split}.py"] = tasks_file(tasks, variable, style)
        for schema in json.loads(prepared[f"{domain}/tools.json"]):
            path = f"{domain}/tools/{schema['function']['name']}.py"
            files[path] = tool_file(schema, style)
        rules = json.loads(prepared[f"{domain}/rules.json"])
        files[f"{domain}/rules.py"] = list_file(rules, "RULES", style)
        files[f"{domain}/wiki.md"] = prepared[f"{domain}/wiki.md"]
    return files


# --- a small τ-bench -------------------------------------------------------------------------


def task(user: str = "ann", **fields: Any) -> dict[str, Any]:
    made = {"annotator": "", "user_id": user, "instruction": 'Say "no", don\'t.'}
    return {**made, "actions": [], "outputs": [], **fields}


def action(name: str = "think", **kwargs: Any) -> dict[str, Any]:
    return {"name": name, "kwargs": kwargs}


def schema(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    function = {"name": name, "description": f"Do {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


TEXT = {"type": "string", "description": 'What\'s \\ "it"', "enum": ["a", "b"]}

SMALL: dict[str, Any] = {
    "retail/orders.json": {"#W1": {"items": [{"price": 1.0}]}},
    "retail/products.json": {},
    "retail/users.json": {"ann": {}, "bob": {}},
    "retail/tasks_train.json": [task(), task("bob", actions=[action(b=[{"x": None}], a=1)])],
    "retail/tasks_dev.json": [task()],
    "retail/tasks_test.json": [task("bob", outputs=["1,5"]), task(actions=[action(), action()])],
    "retail/tools.json": [schema("buy", id=TEXT, count={"type": "integer"}), schema("think")],
    "retail/rules.json": ["Be kind.", ""],
    "airline/flights.json": {"HAT1": {"dates": {}}},
    "airline/reservations.json": {},
    "airline/users.json": {"cy": {}},
    "airline/tasks_test.json": [task("cy", actions=[action(), action("fly", n=53)])],
    "airline/tools.json": [schema("fly", n={"type": "integer"}), schema("think", a=TEXT, b=TEXT)],
    "airline/rules.json": [],
}


def dump(path: str, value: Any) -> bytes:
    return json.dumps(value, indent=0 if "/tasks_" in path else 1).encode()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The prepared files of the small τ-bench, which is pinned like the real one."""
    files = {path: dump(path, value) for path, value in SMALL.items()}
    files |= {f"{domain}/wiki.md": f"# {domain}\r\n".encode() for domain in SPLITS}
    blobs = {path: git_blob_id(content) for path, content in files.items()}
    del blobs[RETAIL_TEST]
    assert blobs.keys() == PREPARED.keys()
    monkeypatch.setattr(module, "PREPARED", blobs)
    monkeypatch.setattr(module, "RETAIL_TESTS", len(SMALL[RETAIL_TEST]))
    return files


@pytest.fixture
def published(prepared: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The published files of the small τ-bench, by path below ``envs/``, pinned too."""
    files = checkout(prepared, Plain())
    pin(monkeypatch, files)
    return files


def pin(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes]) -> None:
    blobs = {path: git_blob_id(content) for path, content in files.items()}
    monkeypatch.setattr(module, "BLOBS", blobs)


def write_all(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


COUNTS = {"retail train": 2, "retail dev": 1, "retail test": 2, "airline test": 1}


# --- reading literals ------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0) | TEXTS | st.floats(0, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
TASKS = st.builds(
    task,
    TEXTS,
    annotator=TEXTS,
    instruction=TEXTS,
    actions=st.lists(
        st.builds(
            lambda name, kwargs: {"name": name, "kwargs": kwargs},
            TEXTS,
            st.dictionaries(TEXTS, VALUES, max_size=3),
        ),
        max_size=3,
    ),
    outputs=st.lists(TEXTS, max_size=2),
)
STYLES = st.builds(Plain) | st.builds(Wild, st.integers(0, 2**32))


@given(st.lists(VALUES, max_size=4), STYLES)
def test_lists_in_any_writing(values: list[Any], style: Plain) -> None:
    """Compared as JSON: the kinds of numbers and the order of keys count."""
    read = read_list(list_file(values, "RULES", style), "rules.py", "RULES")
    assert json.dumps(read) == json.dumps(values)


@given(st.lists(TASKS, max_size=3), STYLES)
def test_tasks_in_any_writing(tasks: list[dict[str, Any]], style: Plain) -> None:
    read = read_tasks(tasks_file(tasks, "TASKS", style), "tasks.py", "TASKS")
    assert json.dumps(read) == json.dumps(tasks)


@given(st.dictionaries(TEXTS, VALUES, max_size=4), STYLES)
def test_schemas_in_any_writing(schema: dict[str, Any], style: Plain) -> None:
    read = read_schema(tool_file(schema, style), "tool.py")
    assert json.dumps(read) == json.dumps(schema)


def test_adjacent_strings_are_one() -> None:
    assert read_list(b"X = [('a' \"b\"\n 'c'), 'd'\n'e']", "x.py", "X") == ["abc", "de"]


def listed(element: str) -> bytes:
    return f"import os\nX = [\n1,\n{element}]".encode()


REFUSED_ELEMENTS = {
    "a name": "os",
    "a call": "os.remove('x')",
    "a constructor": "Action(name='', kwargs={})",
    "an f-string": "f'{1}'",
    "a sum": "1 + 1",
    "a sign": "-1",
    "bytes": "b'x'",
    "dots": "...",
    "a complex number": "1j",
    "infinity": "1e999",
    "a tuple": "(1, 2)",
    "a set": "{1}",
    "a comprehension": "[x for x in ()]",
    "a lambda": "lambda: 0",
    "an assignment": "(x := 1)",
    "an unpacked list": "*[1]",
    "an unpacked dict": "{**{}}",
    "a key that is no string": "{1: 2}",
    "a computed key": "{'a' + 'b': 2}",
    "something deep inside": "{'a': [[{'b': os}]]}",
}


@pytest.mark.parametrize("case", REFUSED_ELEMENTS)
def test_what_is_no_literal_is_refused(case: str) -> None:
    with pytest.raises(UsageError, match=r"^x\.py, line 4: expected (a constant|keys that are)"):
        read_list(listed(REFUSED_ELEMENTS[case]), "x.py", "X")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"^x\.py: there is no X = \[\.\.\.\]$"),
        ("import X", "^x.py: there is no X"),
        ("\nY = []", "^x.py, line 2: expected X = "),
        ("X = {}", "^x.py, line 1: expected X = "),
        ("X: list = []", "^x.py, line 1: expected X = "),
        ("X = Y = []", "^x.py, line 1: expected X = "),
        ("X += []", "^x.py, line 1: expected X = "),
        ("X = []\n\nX.append(1)", "^x.py, line 3: expected nothing besides X = "),
        ("print()\nX = []", "^x.py, line 2: expected nothing besides X = "),
        ("X = [\n1", "^x.py, line 1: '.' was never closed"),
        ("X = []\nraise", "^x.py, line 2: expected nothing besides"),
        ("X = ['\0']", "^x.py.*null bytes"),
    ],
)
def test_a_file_holds_one_list(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_list(source.encode(), "x.py", "X")


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^x\.py is not Python: 'utf-8' codec"):
        read_list(b"X = ['\xff']", "x.py", "X")


T = "Task(annotator='', user_id='', instruction='', actions=[%s], outputs=[])"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}", r"line 3: expected Task\(annotator=, user_id=, instruction=, actions=, outputs=\)"),
        ("Task()", r"line 3: expected Task\("),
        ("Task('', '', '', [], [])", r"line 3: expected Task\("),
        ("Task(**{})", r"line 3: expected Task\("),
        ("types.Task()", r"line 3: expected Task\("),
        (T.replace("user_id", "user") % "", r"line 3: expected Task\("),
        (T.replace("annotator='', ", "") % "", r"line 3: expected Task\("),
        (T.replace("Task(", "Task(1, ") % "", r"line 3: expected Task\("),
        (T.replace("[%s]", "list()"), r"line 3: expected actions=\[\.\.\.\]"),
        (T % "\n\nAction(name='')", r"line 5: expected Action\(name=, kwargs=\)"),
        (T % "\n\nTask(name='', kwargs={})", r"line 5: expected Action\(name=, kwargs=\)"),
        (T % "\nAction(name='', kwargs={'a': print()})", "line 4: expected a constant, .*Call$"),
    ],
)
def test_what_is_no_task_is_refused(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^tasks\.py, {message}"):
        read_tasks(f"\nX = [\n{source}]".encode(), "tasks.py", "X")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class A: pass", r"^tool\.py: expected one class with get_info, found 0$"),
        ("def get_info():\n  return {}", "found 0$"),
        ("class A:\n  def get_info(): return {}\n  def get_info(): return {}", "found 2$"),
        ("class A:\n  def get_info():\n    x = 1\n    return {}", "line 2: expected a get_info "),
        ("class A:\n  def get_info():\n    return dict()", "line 2: expected a get_info that"),
        ("class A:\n  def get_info():\n    return", "line 2: expected a get_info that does"),
        (
            "class A:\n  def get_info():\n    return {\n'a': A}",
            "line 4: expected a constant, .*Name",
        ),
    ],
)
def test_what_is_no_schema_is_refused(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_schema(source.encode(), "tool.py")


DEEP: dict[str, Callable[[int], str]] = {
    "lists": lambda n: "[" * n + "]" * n,
    "dicts": lambda n: "{'a':" * n + "1" + "}" * n,
    "parentheses": lambda n: "(" * n + "1" + ")" * n,
    "signs": lambda n: "-" * n + "1",
    "negations": lambda n: "not " * n + "1",
    "sums": lambda n: "1" + "+1" * n,
    "powers": lambda n: "1" + "**1" * n,
    "attributes": lambda n: "a" + ".a" * n,
    "calls": lambda n: "a" + "()" * n,
    "lambdas": lambda n: "lambda:" * n + "1",
    "conditions": lambda n: "1 if 1 else " * n + "1",
    "digits": lambda n: "9" * n,
}


@pytest.mark.parametrize("case", DEEP)
def test_depth_is_refused(case: str) -> None:
    """As deep as a file of the largest size can be."""
    make = DEEP[case]
    deep = make((MAX_SOURCE - 1000) // (len(make(101)) - len(make(100))) - 1)
    assert MAX_SOURCE - 2000 < len(deep) < MAX_SOURCE - 500
    with pytest.raises(UsageError, match=r"^x\.py( is too deeply nested$|, line 1: )"):
        read_list(f"X = [{deep}]".encode(), "x.py", "X")
    with pytest.raises(UsageError, match=r"^x\.py( is too deeply nested$|, line 2: )"):
        read_schema(f"class A:\n  def get_info(): return {{'a': {deep}}}".encode(), "x.py")


def test_size_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match=r"^x\.py is too large: more than 1,048,576 bytes$"):
        read_list(b"\xff" * (MAX_SOURCE + 1), "x.py", "X")


def test_nothing_is_run(tmp_path: Path) -> None:
    touch = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    for source in (f"X = [{touch}]", f"{touch}\nX = []", f"X = [[]]\n{touch}"):
        with pytest.raises(UsageError):
            read_list(source.encode(), "x.py", "X")
    tool = f"{touch}\nclass A({touch}):\n  {touch}\n  @{touch}\n  def get_info(): return {{'a': 1}}"
    assert read_schema(tool.encode(), "tool.py") == {"a": 1}
    assert list(tmp_path.iterdir()) == []


# --- the real data ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real(shared: Path) -> dict[str, bytes]:
    """The real prepared files, without retail's test tasks."""
    return read_all(shared / "data" / "tau_bench")


def test_real_data(real: dict[str, bytes], shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "tau_bench"
    counts = {"retail train": 500, "retail dev": 20, "airline test": 50}
    assert prepare_tau_bench(tmp_path / "out", source) == counts
    assert read_all(tmp_path / "out") == real
    retail, airline = (read_tau_bench(tmp_path / "out", domain) for domain in SPLITS)
    assert retail.digest(retail.start(retail.tasks("dev")[0])) == (
        "5a4b2cb59f4d12dea7e4adff24a7f8fada510ead49372ea4a729a82bbb5f49b5"
    )
    assert airline.digest(airline.start(airline.tasks("test")[0])) == (
        "4587e6b48ad2b2c4f3e1fecb40aabec7bb2286513273b8f8cec3f5865222f290"
    )
    assert {domain.name: len(domain.tools) for domain in (retail, airline)} == {
        "retail": 16,
        "airline": 14,
    }
    assert retail.policy.startswith("# Retail agent policy\n\nAs a retail agent, you can help")
    assert airline.tasks("test")[0].id == "airline-test-0"
    assert retail.splits == ("train", "dev")
    with pytest.raises(UsageError, match="no split 'test'; it has train, dev$"):
        retail.tasks("test")


@pytest.mark.parametrize("style", [Plain(), Wild(1), Wild(2)], ids=["plain", "wild", "wilder"])
def test_a_checkout_gives_the_real_data_byte_for_byte(
    style: Plain, real: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = json.loads(real["retail/tasks_train.json"])[:115]
    files = {**real, RETAIL_TEST: dump(RETAIL_TEST, tests)}
    published = checkout(files, style)
    assert published.keys() == BLOBS.keys()
    pin(monkeypatch, published)
    counts = prepare_tau_bench(tmp_path / "out", write_all(tmp_path / "envs", published))
    assert counts == {"retail train": 500, "retail dev": 20, "retail test": 115, "airline test": 50}
    assert read_all(tmp_path / "out") == files
    prepare_tau_bench(tmp_path / "again", tmp_path / "out")
    assert read_all(tmp_path / "again") == files


def test_pins() -> None:
    assert all(re.fullmatch("[0-9a-f]{40}", id) for id in [*BLOBS.values(), *PREPARED.values()])
    assert len(BLOBS) == 44
    assert module.URL.endswith("/tau-bench/59a200c6d575d595120f1cb70fea53cef0632f6b/tau_bench/envs")


# --- layouts ---------------------------------------------------------------------------------


def test_checkout(published: dict[str, bytes], prepared: dict[str, bytes], tmp_path: Path) -> None:
    repository = tmp_path / "tau-bench"
    write_all(repository / "tau_bench" / "envs", published)
    other = {"tau_bench/envs/retail/tools/__init__.py": b"1 / 0", "tests/retail/wiki.md": b"old"}
    write_all(repository, other)
    assert prepare_tau_bench(tmp_path / "out", repository) == COUNTS
    assert read_all(tmp_path / "out") == prepared


def zipped(path: Path, files: Mapping[str, bytes], prefix: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


def test_archive(published: dict[str, bytes], prepared: dict[str, bytes], tmp_path: Path) -> None:
    archive = zipped(tmp_path / "tau.zip", published, "../tau-bench-59a200c/tau_bench/envs/")
    assert prepare_tau_bench(tmp_path / "out", archive) == COUNTS
    assert read_all(tmp_path / "out") == prepared


def test_download(
    published: dict[str, bytes],
    prepared: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "URL", write_all(tmp_path / "site", published).as_uri())
    assert prepare_tau_bench(tmp_path / "out") == COUNTS
    assert read_all(tmp_path / "out") == prepared
    assert capsys.readouterr().err.count("MB\n") == len(published)
    (tmp_path / "site" / "airline" / "tools" / "fly.py").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"fly\.py is not the pinned file: git blob e69de29bb2d1d6"
    ):
        prepare_tau_bench(tmp_path / "out")
    assert read_all(tmp_path / "out") == prepared


def test_prepared_data(prepared: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare_tau_bench(out, write_all(tmp_path / "in" / "tau", prepared)) == COUNTS
    assert read_all(out) == prepared
    with_tests = read_tau_bench(out, "retail")
    (tmp_path / "in" / "tau" / RETAIL_TEST).unlink()
    del prepared[RETAIL_TEST]
    counts = prepare_tau_bench(out, tmp_path / "in")
    assert counts == {split: n for split, n in COUNTS.items() if split != "retail test"}
    assert read_all(out) == prepared
    without = read_tau_bench(out, "retail")
    assert (with_tests.splits, without.splits) == (("train", "dev", "test"), ("train", "dev"))
    assert prepare_tau_bench(out, out) == counts  # in its own place


# --- what is refused -------------------------------------------------------------------------


def replaced(**changes: Any) -> Callable[[list[Any]], Any]:
    return lambda tests: [{**tests[0], **changes}, *tests[1:]]


BAD_TESTS: dict[str, Callable[[list[Any]], Any]] = {
    "too few": lambda tests: tests[1:],
    "too many": lambda tests: [*tests, tests[0]],
    "no list": lambda tests: dict(enumerate(tests)),
    "no objects": lambda tests: [None] * len(tests),
    "a field is missing": lambda tests: [{"user_id": "ann"}, *tests[1:]],
    "no such user": replaced(user_id="zoe"),
    "a user that is no text": replaced(user_id=["ann"]),
    "no such tool": replaced(actions=[action("fly")]),
    "no action": replaced(actions=["think"]),
    "no arguments": replaced(actions=[{"name": "think", "kwargs": []}]),
    "no instruction": replaced(instruction=None),
    "numbers as outputs": replaced(outputs=[5]),
}


@pytest.mark.parametrize("case", BAD_TESTS)
def test_retail_tests_must_look_like_them(
    case: str, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    prepared[RETAIL_TEST] = json.dumps(BAD_TESTS[case](SMALL[RETAIL_TEST])).encode()
    with pytest.raises(
        UsageError, match=r"retail/tasks_test\.json in .* does not hold retail's 2 t"
    ):
        prepare_tau_bench(tmp_path / "out", write_all(tmp_path / "in", prepared))


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[{}, {}"])
def test_retail_tests_must_be_json(
    content: bytes, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    prepared[RETAIL_TEST] = content
    with pytest.raises(UsageError, match="does not hold retail's 2 test tasks"):
        prepare_tau_bench(tmp_path / "out", write_all(tmp_path / "in", prepared))


def test_retail_tests_must_be_the_same_everywhere(
    prepared: dict[str, bytes], tmp_path: Path
) -> None:
    write_all(tmp_path / "in" / "one", prepared)
    write_all(tmp_path / "in" / "two", prepared)
    assert prepare_tau_bench(tmp_path / "out", tmp_path / "in") == COUNTS
    (tmp_path / "in" / "two" / RETAIL_TEST).write_bytes(prepared[RETAIL_TEST] + b"\n")
    with pytest.raises(UsageError, match="does not hold retail's 2 test tasks"):
        prepare_tau_bench(tmp_path / "out", tmp_path / "in")


@pytest.mark.parametrize("path", PREPARED)
def test_prepared_data_must_be_the_pinned(
    path: str, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    source, out = write_all(tmp_path / "in", prepared), tmp_path / "out"
    prepare_tau_bench(out, source)
    (source / path).write_bytes(prepared[path] + b" ")
    with pytest.raises(UsageError, match=rf"^{path} in .* is not the pinned file \(commit 59a200c"):
        prepare_tau_bench(out, source)
    (source / path).unlink()
    with pytest.raises(UsageError, match=rf"has no {path}: it is not tau-bench at 59a200c$"):
        prepare_tau_bench(out, source)
    assert read_all(out) == prepared
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out"]


def test_a_checkout_must_be_the_pinned(
    published: dict[str, bytes], prepared: dict[str, bytes], tmp_path: Path
) -> None:
    """The syntax tree of a file that is another is not even built."""
    source, out = write_all(tmp_path / "in", published), tmp_path / "out"
    prepare_tau_bench(out, source)
    for path, content in published.items():
        for wrong in (content.replace(b"\n", b"\r\n") + b"\n", b"(" * 1000, b"\0" * (5 << 20)):
            (source / path).write_bytes(wrong)
            with pytest.raises(UsageError, match=rf"^{path} in .* is (not the pinned|too large: )"):
                prepare_tau_bench(out, source)
        (source / path).write_bytes(content)
    (source / path).unlink()
    with pytest.raises(UsageError, match=rf"has no {path}: it is not tau-bench at 59a200c$"):
        prepare_tau_bench(out, source)
    assert read_all(out) == prepared


@pytest.mark.parametrize("name", ["retail/wiki.md", "airline/tools/fly.py"])
def test_names_in_an_archive_are_shown_without_codes(
    name: str, published: dict[str, bytes], tmp_path: Path
) -> None:
    archive = zipped(tmp_path / "tau.zip", {**published, name: b"other"}, "\x1b[2J\n/")
    with pytest.raises(
        UsageError, match=rf"^'\\x1b\[2J\\n/{name}' in .* is not the pinned"
    ) as raised:
        prepare_tau_bench(tmp_path / "out", archive)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "cannot read .*nowhere: No such file"),
        ("empty", "empty has no retail/data/orders.json: it is not tau-bench at 59a200c$"),
        ("text", "text is no zip archive"),
    ],
)
def test_other_sources(source: str, message: str, tmp_path: Path) -> None:
    write_all(tmp_path, {"text": b"hello"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        prepare_tau_bench(tmp_path / "out", tmp_path / source)
    assert not (tmp_path / "out").exists()


# --- loading ---------------------------------------------------------------------------------


def test_what_is_read(prepared: dict[str, bytes], tmp_path: Path) -> None:
    write_all(tmp_path, prepared)
    retail = read_tau_bench(tmp_path, "retail")
    assert retail.policy == "# retail\r\n"
    assert retail.tools == (
        ToolSpec("buy", "Do buy.", {"id": TEXT, "count": {"type": "integer"}}, ("id",)),
        ToolSpec("think", "Do think.", {}),
    )
    assert retail.base.tables == {
        table: SMALL[f"retail/{table}.json"] for table in ("orders", "products", "users")
    }
    assert [(split, [t.id for t in retail.tasks(split)]) for split in retail.splits] == [
        ("train", ["retail-train-0", "retail-train-1"]),
        ("dev", ["retail-dev-0"]),
        ("test", ["retail-test-0", "retail-test-1"]),
    ]
    second = retail.tasks("train")[1]
    assert (second.user_id, second.split, second.instruction) == (
        "bob",
        "train",
        'Say "no", don\'t.',
    )
    assert second.goals == (ToolCall("think", {"b": [{"x": None}], "a": 1}),)
    assert retail.tasks("test")[0].outputs == ("1,5",)
    assert read_tau_bench(tmp_path, "airline").splits == ("test",)


def test_data_is_read_once(prepared: dict[str, bytes], tmp_path: Path) -> None:
    write_all(tmp_path / "one", prepared)
    first = read_tau_bench(tmp_path / "one", "airline")
    assert read_tau_bench(tmp_path / "one", "airline") is first
    (tmp_path / "one" / "airline" / "users.json").touch()
    assert read_tau_bench(tmp_path / "one", "airline") is not first


def test_fingerprints(prepared: dict[str, bytes], tmp_path: Path) -> None:
    """Equal data and scoring, equal fingerprints; all else makes a difference."""
    write_all(tmp_path / "one", prepared)
    write_all(tmp_path / "two", prepared)
    (tmp_path / "two" / RETAIL_TEST).unlink()

    def fingerprint(folder: str, domain: str, scoring: Scoring = "upstream") -> str:
        return read_tau_bench(tmp_path / folder, domain, scoring).fingerprint

    assert fingerprint("one", "airline") == fingerprint("two", "airline")
    assert fingerprint("one", "airline", "fork") == fingerprint("two", "airline", "fork")
    different = {
        fingerprint("one", "airline"),
        fingerprint("one", "airline", "fork"),
        fingerprint("one", "retail"),
        fingerprint("two", "retail"),
        fingerprint("one", "retail", "fork"),
    }
    assert len(different) == 5
    assert read_tau_bench(tmp_path / "one", "airline", "fork").scoring == "fork"


def test_wrong_choices(prepared: dict[str, bytes], tmp_path: Path) -> None:
    write_all(tmp_path, prepared)
    with pytest.raises(UsageError, match="no domain 'bank': choose retail or airline$"):
        read_tau_bench(tmp_path, "bank")
    with pytest.raises(UsageError, match="no scoring rule 'mild': choose upstream or fork$"):
        read_tau_bench(tmp_path, "retail", "mild")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot read .*tools.json: Not a directory$"):
        read_tau_bench(tmp_path / "retail" / "tools.json", "retail")


@pytest.mark.parametrize("path", PREPARED)
def test_damaged_data_is_not_played(path: str, prepared: dict[str, bytes], tmp_path: Path) -> None:
    domain = path.partition("/")[0]
    write_all(tmp_path, prepared)
    read_tau_bench(tmp_path, domain)
    (tmp_path / path).write_bytes(prepared[path][:-1])
    with pytest.raises(
        UsageError, match="is damaged, or .*: run python -m toolwoz_gym data prepare tau_b"
    ):
        read_tau_bench(tmp_path, domain)
    (tmp_path / path).unlink()
    with pytest.raises(UsageError, match="is not prepared in .*: run python -m toolwoz_gym data p"):
        read_tau_bench(tmp_path, domain)


@pytest.mark.parametrize("content", [b"", b"5", b"[5]", b"[{}]", b"[" * 100_000])
def test_damaged_retail_tests_are_not_played(
    content: bytes, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    write_all(tmp_path, {**prepared, RETAIL_TEST: content})
    with pytest.raises(UsageError, match="is damaged"):
        read_tau_bench(tmp_path, "retail")
    assert read_tau_bench(tmp_path, "airline").splits == ("test",)


def test_where_data_lives(
    prepared: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path))
    assert not is_prepared()
    with pytest.raises(UsageError, match=f"is not prepared in {tmp_path / 'tau_bench'}: run "):
        load_tau_bench("retail")
    prepare_tau_bench(tmp_path / "tau_bench", write_all(tmp_path / "in", prepared))
    assert is_prepared()
    assert load_tau_bench("retail") is read_tau_bench(tmp_path / "tau_bench", "retail")
    assert load_tau_bench("airline", "fork").scoring == "fork"
