"""Training rows: a hand-worked tree, and what holds of the rows of any tree."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import write_log

from agents.backends.canned import CannedBackend
from agents.base import ChatMessage, Sampling
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import ToolCallingAgent, system_prompt
from josh_search.rows import (
    ASTRAY,
    CUT_OFF,
    GOOD_ELSEWHERE,
    LED_TO_A_GOAL,
    NOT_UNICODE,
    REPEATED,
    UNCLEAN,
    UNPAIRED,
    UNSOLVED,
    Rows,
    make_rows,
    write_rows,
)
from josh_search.search import SearchOptions, search
from josh_search.tree import tree_to_json
from toolwoz_gym.actions import format_action, format_call, parse_action
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.records import message_from_json, message_to_json, read_jsonl
from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.types import END_CONVERSATION, Message, Task, ToolCall, UsageError
from toolwoz_gym.users.scripted import ScriptedUser

WORLD = load_builtin(CityOptions.parse("domains=1,constraints=1,failures=0"))
DIALOGUE = Dialogue(WORLD, ScriptedUser(), max_steps=45)
SYSTEM = system_prompt(WORLD.policy, WORLD.tools)

USELESS = format_call(ToolCall("search_attraction", {}))
BAD = '{"name": "search_hotel"'


class Waverer:
    """What the expert does, but now and then something else, written as a model would."""

    def __init__(self, task: Task, error_rate: float) -> None:
        self.expert, self.error_rate = ExpertAgent(task), error_rate
        self.backend = CannedBackend(self.write)
        self.agent = ToolCallingAgent(self.backend, SYSTEM)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        self.view = view
        return self.agent.act(view, seed=seed)

    def write(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        luck = Luck(sampling.seed, "waver")
        if luck.chance(self.error_rate):
            return luck.choice([BAD, USELESS, f" {USELESS} ", "Hm.", "What is your budget?"])
        message = self.expert.act(self.view, seed=0)
        return format_call(message.call) if message.call else message.content


def grown(number: int, seed: int, error_rate: float, options: SearchOptions) -> dict[str, Any]:
    """Return the record of a search, as it is read from a file."""
    task = WORLD.tasks("train")[number]
    tree = search(DIALOGUE, Waverer(task, error_rate), task, seed=seed, options=options)
    record: dict[str, Any] = json.loads(json.dumps(tree_to_json(tree, 0)))
    return record


searched = st.builds(
    grown,
    number=st.integers(0, 300),
    seed=st.integers(0, 10**6),
    error_rate=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    options=st.builds(
        SearchOptions,
        strategy=st.sampled_from(["go_explore", "josh", "josh", "chains"]),
        patience=st.just(30),
        branch=st.sampled_from(["turn", "output"]),
        beam=st.sampled_from([1, 2, 4, 8]),
        max_steps=st.integers(1, 8),
        max_outputs=st.sampled_from([1, 3]),
        reward=st.sampled_from(["goal_calls", "terminal"]),
    ),
)


Said = tuple[str, str]
"""A prompt, as JSON, and what was written at it: what may bear one label only."""


@dataclass(frozen=True)
class Written:
    """An assistant message of a tree, as the rules see it."""

    tree: str
    node: int
    said: Said
    golden: bool
    clean: bool
    """Whether a golden path without malformed output that met no goal twice goes through it."""
    whole: bool
    """Whether the model ended it."""
    successful: bool


def written(record: Mapping[str, Any]) -> list[Written]:
    """Return every assistant message of a tree, worked out the long way."""
    agent = ToolCallingAgent(CannedBackend([]), SYSTEM)
    nodes = record["nodes"]

    def path(node: dict[str, Any]) -> list[dict[str, Any]]:
        return [*path(nodes[node["parent"]]), node] if node["parent"] is not None else [node]

    golden = [path(node) for node in nodes if node["golden"]]
    ends = [p for p in golden if not any(p[-1] is node for q in golden for node in q[:-1])]
    right = [p for p in ends if not any("error" in m for node in p for m in node["messages"])]
    met = [[goal for node in p for goal in node["met"]] for p in right]
    clean = [p for p, goals in zip(right, met, strict=True) if len(goals) == len(set(goals))]
    found = []
    for node in nodes:
        view = [message_from_json(m) for above in path(node)[:-1] for m in above["messages"]]
        for message in map(message_from_json, node["messages"]):
            if message.role == "assistant":
                prompt = json.dumps(agent.prompt(view))
                text = format_action(message) if message.raw is None else message.raw
                is_clean = any(node is above for p in clean for above in p)
                marks = node["golden"], is_clean, not message.cut_off, node["successful"]
                found.append(Written(record["key"], node["id"], (prompt, text), *marks))
            view.append(message)
    return found


def said(row: Mapping[str, Any], completion: str = "completion") -> Said:
    (message,) = row[completion]
    assert message["role"] == "assistant"
    return json.dumps(row["prompt"]), message["content"]


def is_unicode(said: Said) -> bool:
    try:
        json.dumps([json.loads(said[0]), said[1]], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def check(records: Sequence[Mapping[str, Any]], rows: Rows) -> None:
    """Check that the rows of some trees are exactly what the rules say."""
    trees = {record["key"]: written(record) for record in records}
    everything = [message for tree in trees.values() for message in tree]
    successful = {m.said for m in everything if m.successful or m.golden}

    labels: dict[Said, set[bool]] = {}
    for row in rows.kto:
        labels.setdefault(said(row), set()).add(row["label"])
        where = [m for m in trees[row["tree"]] if (m.node, m.said) == (row["node"], said(row))]
        assert where, "the prompt is what the model was shown there, and this is what it wrote"
        assert all(m.golden == row["label"] for m in where)
    assert all(len(found) == 1 for found in labels.values()), "two labels"
    assert not successful & {s for s, found in labels.items() if False in found}

    expected_good, expected_bad, expected_pairs, unpaired = [], [], [], 0
    for record in records:
        tree = trees[record["key"]] if record["solved"] else []
        golden = {m.said for m in tree if m.golden and m.clean and m.whole}
        good = {s for s in golden if is_unicode(s)}
        prompts = {m.said[0] for m in tree if m.golden}
        off = {m.said for m in tree if m.said[0] in prompts} - successful
        bad = {s for s in off if is_unicode(s)}
        pairs = [(*s, text) for s in bad for prompt, text in good if prompt == s[0]]
        expected_good += [(record["key"], s) for s in good]
        expected_bad += [(record["key"], s) for s in bad]
        expected_pairs += [(record["key"], *pair) for pair in pairs]
        unpaired += len(bad) - len({pair[:2] for pair in pairs})
    assert Counter((r["tree"], said(r)) for r in rows.kto if r["label"]) == Counter(expected_good)
    assert Counter((r["tree"], said(r)) for r in rows.kto if not r["label"]) == Counter(
        expected_bad
    )
    assert rows.sft == [
        {k: v for k, v in row.items() if k != "label"} for row in rows.kto if row["label"]
    ]
    assert Counter(
        (r["tree"], *said(r, "rejected"), said(r, "chosen")[1]) for r in rows.dpo
    ) == Counter(expected_pairs)

    # Every message of the run has a row, or is counted once.
    assert rows.dropped[UNPAIRED] == unpaired
    assert len(rows.kto) + rows.dropped.total() - unpaired == len(everything)
    assert rows.dropped[UNSOLVED] == sum(
        len(trees[record["key"]]) for record in records if not record["solved"]
    )
    counts = rows.counts()
    assert counts["kto"] == {"good": len(expected_good), "bad": len(expected_bad)}
    assert (counts["sft"], counts["dpo"]) == (len(rows.sft), len(rows.dpo))


# --- what holds of any tree --------------------------------------------------------------------

TEXTS = ["a", "a", "b", " b", "{", "", "\ud800", USELESS]
ANSWERS = ["x", "x", "y"]


@dataclass(frozen=True)
class Sketch:
    """What is drawn of a node, to be made one by :func:`build`."""

    above: int
    """The parent: so many nodes before this one."""
    texts: list[str]
    answer: str
    cut_off: bool
    """Whether the words of its last message were cut off."""
    hit: bool
    target: bool


sketches = st.builds(
    Sketch,
    above=st.integers(1, 4),
    texts=st.lists(st.sampled_from(TEXTS), max_size=3),
    answer=st.sampled_from(ANSWERS),
    cut_off=st.sampled_from([False, False, True]),
    hit=st.booleans(),
    target=st.booleans(),
)


def build(key: str, opening: str, solved: bool, drawn: Sequence[Sketch]) -> dict[str, Any]:
    """Make the record of a tree in which any node may have been branched at any time.

    Marks are consistent: a hit and its ancestors are successful, a hit that is a target and its
    ancestors are golden, and a solved tree has a target: its last node, if no other.
    """
    if solved and not any(sketch.hit and sketch.target for sketch in drawn):
        drawn = [*drawn[:-1], replace(drawn[-1], hit=True, target=True)]
    nodes = [node(0, None, [message_to_json(Message("user", opening))])]
    for sketch in drawn:
        parent = max(0, len(nodes) - sketch.above)
        messages = []
        for text in sketch.texts:
            message = parse_action(text)
            silent = message.call is not None or message.error is not None
            cut_off = sketch.cut_off and text is sketch.texts[-1] and message.call is None
            messages.append(message_to_json(replace(message, raw=text, cut_off=cut_off)))
            messages.append(message_to_json(Message("tool" if silent else "user", sketch.answer)))
        met = ["b"] if "b" in sketch.texts else []
        nodes.append({**node(len(nodes), parent, messages), "met": met})
    for sketch, last in zip(drawn, nodes[1:], strict=True):
        above: int | None = last["id"] if sketch.hit else None
        while above is not None:
            nodes[above]["successful"] = True
            nodes[above]["golden"] |= sketch.target
            above = nodes[above]["parent"]
    return {"key": key, "task_id": key, "solved": solved, "nodes": nodes}


def node(id: int, parent: int | None, messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": id, "parent": parent, "messages": messages, "outcome": None, "successful": False,
        "golden": False, "met": [],
    }  # fmt: skip


drawn_trees = st.lists(
    st.tuples(
        st.sampled_from(["hello", "hello", "bye"]),
        st.sampled_from([True, True, True, False]),
        st.lists(sketches, min_size=1, max_size=8),
    ),
    min_size=2,
    max_size=3,
).map(lambda trees: [build(f"t{i}/0", *tree) for i, tree in enumerate(trees)])


def test_what_holds_of_the_rows_of_any_trees() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=1500)
    @given(drawn_trees)
    def any_trees(records: list[dict[str, Any]]) -> None:
        rows = make_rows(records, SYSTEM)
        check(records, rows)
        seen.update(rows.tally() + rows.dropped)

    any_trees()
    # The property is about something: all that can become of a message has come of many.
    assert {name for name, count in seen.items() if count > 50} == {
        *("good", "bad", "sft", "dpo", UNSOLVED, ASTRAY, REPEATED, UNCLEAN),
        *(CUT_OFF, LED_TO_A_GOAL, GOOD_ELSEWHERE, NOT_UNICODE, UNPAIRED),
    }


@settings(max_examples=250)
@given(searched)
def test_what_holds_of_the_rows_of_any_search(record: dict[str, Any]) -> None:
    check([record], make_rows([record], SYSTEM))


def without_nodes(rows: Rows) -> dict[str, Counter[str]]:
    """Return the rows of each kind, whatever the nodes that they are of."""
    return {
        kind: Counter(
            json.dumps({k: v for k, v in row.items() if k != "node"}) for row in getattr(rows, kind)
        )
        for kind in ("kto", "sft", "dpo")
    }


def by_outputs(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same tree with a node for each model output instead of each turn."""
    nodes: list[dict[str, Any]] = []
    ends: dict[int | None, int | None] = {None: None}
    for turn in record["nodes"]:
        cuts = [i for i, m in enumerate(turn["messages"]) if m["role"] == "assistant" and i > 0]
        parent = ends[turn["parent"]]
        for start, end in pairwise([0, *cuts, len(turn["messages"])]):
            own = turn["messages"][start:end]
            met = [] if start else turn["met"]
            nodes.append({**turn, "id": len(nodes), "parent": parent, "messages": own, "met": met})
            parent = nodes[-1]["id"]
        ends[turn["id"]] = parent
    return {**record, "nodes": nodes}


def merged(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same tree with siblings that said the same made one node."""
    nodes: list[dict[str, Any]] = []
    found: dict[str, int] = {}
    became: dict[int | None, int | None] = {None: None}
    for node in record["nodes"]:
        parent = became[node["parent"]]
        place = found.setdefault(json.dumps([parent, node["messages"]]), len(nodes))
        if place == len(nodes):
            nodes.append({**node, "id": place, "parent": parent})
        for mark in ("golden", "successful"):
            nodes[place][mark] |= node[mark]
        became[node["id"]] = place
    return {**record, "nodes": nodes}


@settings(max_examples=300)
@given(drawn_trees | searched.map(lambda record: [record]))
def test_rows_do_not_depend_on_how_the_tree_is_cut_into_nodes(
    records: list[dict[str, Any]],
) -> None:
    rows = make_rows(records, SYSTEM)
    outputs = make_rows(list(map(by_outputs, records)), SYSTEM)
    assert without_nodes(outputs) == without_nodes(rows)
    assert outputs.dropped == rows.dropped
    joined = make_rows(list(map(merged, records)), SYSTEM)
    assert without_nodes(joined) == without_nodes(rows)
    check(list(map(merged, records)), joined)


def test_random_agents_give_rows_too() -> None:
    counts: Counter[str] = Counter()
    for number in range(60):
        task = WORLD.tasks("train")[number]
        agent = RandomAgent(WORLD.tools)
        tree = search(DIALOGUE, agent, task, seed=number, options=SearchOptions(strategy="josh"))
        record = json.loads(json.dumps(tree_to_json(tree, 0)))
        rows = make_rows([record], SYSTEM)
        check([record], rows)
        counts += Counter(solved=tree.solved) + rows.tally()
    assert counts["good"] > counts["solved"] > 0 < counts["bad"]


@pytest.mark.parametrize("reward", ["goal_calls", "terminal"])
def test_no_two_trees_contradict_each_other(reward: Any) -> None:
    """Dialogues may begin alike: what was good in one tree is not punished in another."""
    options = SearchOptions(strategy="josh", beam=8, max_steps=6, reward=reward)
    trees = [
        {**grown(number, number, error_rate, options), "key": f"{number}/{trial}"}
        for number in range(30)
        for trial, error_rate in enumerate((0.1, 0.3, 0.5, 0.7))
    ]
    rows = make_rows(trees, SYSTEM)
    assert rows.dropped[GOOD_ELSEWHERE] > 0
    check(trees, rows)


# --- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trees() -> list[dict[str, Any]]:
    return [
        grown(number, number, 0.5, SearchOptions(strategy="josh", beam=4, max_steps=6))
        for number in range(40)
    ]


def test_files_hold_the_rows(trees: list[dict[str, Any]], tmp_path: Path) -> None:
    write_log(tmp_path / "trees.jsonl", trees)
    counts = write_rows(tmp_path, SYSTEM)
    rows = make_rows(trees, SYSTEM)
    assert counts == rows.counts()
    for kind in ("kto", "sft", "dpo"):
        assert list(read_jsonl(tmp_path / f"{kind}.jsonl")) == getattr(rows, kind) != []
    assert {file.suffix for file in tmp_path.iterdir()} == {".jsonl"}


def test_a_run_without_trees_has_files_without_rows(tmp_path: Path) -> None:
    write_log(tmp_path / "trees.jsonl", [])
    counts = write_rows(tmp_path, SYSTEM)
    assert counts == {"kto": {"good": 0, "bad": 0}, "sft": 0, "dpo": 0, "dropped": {}}
    assert (tmp_path / "dpo.jsonl").read_bytes() == b""


def test_old_files_stay_whole_when_the_trees_cannot_be_read(
    trees: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_log(tmp_path / "trees.jsonl", trees[:3])
    (tmp_path / "kto.jsonl").write_text("old")
    with open(tmp_path / "trees.jsonl", "a") as file:
        file.write('{"damaged":1}\n')
    with pytest.raises(UsageError, match="line 4: damaged"):
        write_rows(tmp_path, SYSTEM)
    assert (tmp_path / "kto.jsonl").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_memory_does_not_grow_with_the_trees(trees: list[dict[str, Any]], tmp_path: Path) -> None:
    """Ten times the trees cost a few hundred bytes more for each; their rows are kilobytes."""
    peaks = []
    for times in (1, 10):
        run = tmp_path / str(times)
        run.mkdir()
        copies = ({**tree, "key": f"{i}/{tree['key']}"} for i in range(times) for tree in trees)
        count = write_log(run / "trees.jsonl", copies)
        tracemalloc.start()
        write_rows(run, SYSTEM)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    rows = (run / "kto.jsonl").stat().st_size
    assert peaks[1] - peaks[0] < 300 * count < rows / 20


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    specials = ["<|im_start|>", "<|im_end|>"]
    vocab = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(specials)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token=specials[1], pad_token=specials[1],
        chat_template=template,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, eos_token_id=1, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("policy")
    logging.disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["kto", "sft", "dpo"])
def test_trl_takes_the_files_unchanged(
    kind: str, trees: list[dict[str, Any]], policy: Path, tmp_path: Path
) -> None:
    import datasets
    import trl

    write_log(tmp_path / "trees.jsonl", trees[:12])
    write_rows(tmp_path, "You serve.")
    file = tmp_path / f"{kind}.jsonl"
    datasets.disable_progress_bars()
    rows = datasets.load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.to_list() == list(read_jsonl(file))
    trainer_class, config_class = {
        "kto": (trl.KTOTrainer, trl.KTOConfig),
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
    }[kind]
    config = config_class(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2,
        max_length=None, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = trainer_class(model=str(policy), args=config, train_dataset=rows)
    assert trainer.train().global_step == 1
    seen = trainer.train_dataset
    assert len(seen) == len(rows)
    # What is learned is what the model wrote, and the end of its message.
    decode = trainer.processing_class.decode
    for row, tokens in zip(rows, seen, strict=True):
        if kind == "sft":
            learned = {"completion": [t for t in tokens["labels"] if t != -100]}
        else:
            names = ["completion"] if kind == "kto" else ["chosen", "rejected"]
            learned = {name: tokens[f"{name}_ids"] for name in names}
        for name, ids in learned.items():
            assert decode(ids).rstrip("\n") == f"{row[name][0]['content']}<|im_end|>"


# --- a tree worked by hand -------------------------------------------------------------------

TASK = next(task for task in WORLD.tasks("train") if len(task.goals) == 2)
SEARCH, BOOK = (format_call(goal) for goal in TASK.goals)


class Told:
    """Writes what it is told at (step, leaf): a turn of outputs each."""

    def __init__(self, turns: Mapping[tuple[int, int], Sequence[str]]) -> None:
        self.turns, self.agent = turns, ToolCallingAgent(CannedBackend(self.write), SYSTEM)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        return self.agent.act(view, seed=seed)

    def write(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        for (step, leaf), outputs in self.turns.items():
            for output, text in enumerate(outputs):
                if sampling.seed == derive(derive(1, "branch", step, leaf), output):
                    return text
        raise AssertionError("nothing more was to be written")


class Echo:
    """A customer that repeats what it hears, and leaves when it hears "bye"."""

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        if not messages:
            return Message("user", "opening")
        end = f" {END_CONVERSATION}" if "bye" in messages[-1].content else ""
        return Message("user", f"{messages[-1].content}?{end}")


def told(turns: Mapping[tuple[int, int], Sequence[str]], **options: Any) -> dict[str, Any]:
    tree = search(
        Dialogue(WORLD, Echo(), 45),
        Told(turns),
        TASK,
        seed=1,
        options=SearchOptions(strategy="josh", **options),
    )
    return tree_to_json(tree, 0)


def brief(rows: Rows) -> list[tuple[str, str, bool]]:
    """Return the last message of each row's prompt, its completion and its label."""
    return [
        (row["prompt"][-1]["content"], row["completion"][0]["content"], row["label"])
        for row in rows.kto
    ]


def pairs(rows: Rows) -> list[tuple[str, str, str]]:
    return [
        (r["prompt"][-1]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"])
        for r in rows.dpo
    ]


def found() -> str:
    world, answer = WORLD.call(TASK, WORLD.start(TASK), TASK.goals[0])
    assert world == {0}
    return f"[tool] {answer}"


def test_a_tree_worked_by_hand() -> None:
    """Four leaves at the second step; the third meets the search, then the fifth turn the booking.

    The left half leaves the golden path with its first message: one bad row, and none for what
    followed it. The fourth leaf begins like the golden one and goes astray after the call.
    """
    record = told(
        {
            (0, 0): ["Hm."],
            (0, 1): ["Where?"],
            (1, 0): [USELESS, "So?"],
            (1, 1): ["Well."],
            (1, 2): [USELESS, SEARCH, "Found it."],
            (1, 3): [USELESS, BAD, "Oh."],
            (2, 0): [BOOK, "Booked."],
            (2, 1): ["bye"],
        },
        beam=4,
    )
    rows = make_rows([record], SYSTEM)
    useless_answer = record["nodes"][5]["messages"][1]["content"]
    assert brief(rows) == [
        ("opening", "Where?", True),
        ("Where??", USELESS, True),
        (f"[tool] {useless_answer}", SEARCH, True),
        (found(), "Found it.", True),
        ("Found it.?", BOOK, True),
        (rows.sft[-1]["prompt"][-1]["content"], "Booked.", True),
        ("opening", "Hm.", False),
        (f"[tool] {useless_answer}", BAD, False),
        ("Found it.?", "bye", False),
    ]
    assert pairs(rows) == [
        ("opening", "Where?", "Hm."),
        (f"[tool] {useless_answer}", SEARCH, BAD),
        ("Found it.?", BOOK, "bye"),
    ]
    assert [row["completion"][0]["content"] for row in rows.sft] == [
        "Where?", USELESS, SEARCH, "Found it.", BOOK, "Booked.",
    ]  # fmt: skip
    assert rows.counts() == {
        "kto": {"good": 6, "bad": 3},
        "sft": 6,
        "dpo": 3,
        "dropped": {ASTRAY: 4, REPEATED: 1},  # USELESS, "So?", "Well.", "Oh."; the last USELESS
    }
    assert rows.kto[0]["prompt"][0] == {"role": "system", "content": SYSTEM}
    assert {row["task_id"] for row in rows.kto} == {TASK.id}
    check([record], rows)


def test_what_met_a_goal_elsewhere_is_not_punished() -> None:
    """The right leaf meets the goal too, one output later: neither good nor bad."""
    turns = {
        (0, 0): [SEARCH, "a"],
        (0, 1): [USELESS, SEARCH, "b"],
        (1, 0): [BOOK, "c"],
        (1, 1): [BOOK, "d"],
    }
    rows = make_rows([told(turns, beam=2, max_steps=1)], SYSTEM)
    assert rows.dropped == {UNSOLVED: 5} and not rows.kto
    record = told(turns, beam=2)
    rows = make_rows([record], SYSTEM)
    assert [text for _, text, label in brief(rows) if not label] == []
    assert rows.dropped == {LED_TO_A_GOAL: 2, ASTRAY: 2, REPEATED: 1}
    check([record], rows)


def test_golden_paths_with_malformed_output_give_no_good_rows() -> None:
    record = told(
        {
            (0, 0): [BAD, SEARCH, "a"],
            (0, 1): ["b"],
            (1, 0): [BOOK, "c"],
            (1, 1): ["d"],
        },
        beam=2,
    )
    assert record["solved"]
    rows = make_rows([record], SYSTEM)
    assert brief(rows) == [("opening", "b", False), ("a?", "d", False)]
    assert rows.sft == rows.dpo == []
    assert rows.dropped == {UNCLEAN: 5, UNPAIRED: 2}
    check([record], rows)


def test_a_malformed_path_does_not_spoil_another() -> None:
    """Two paths to the reward that share their first message: only one of them is clean."""
    record = told(
        {
            (0, 0): ["Where?"],
            (1, 0): [BAD, SEARCH, BOOK, "bye"],
            (1, 1): [SEARCH, BOOK, "bye"],
            (0, 1): ["Where?"],
            (1, 2): ["bye"],
            (1, 3): ["bye"],
        },
        beam=4,
        max_outputs=4,
        reward="terminal",
    )
    rows = make_rows([record], SYSTEM)
    assert [text for _, text, label in brief(rows) if label] == ["Where?", SEARCH, BOOK, "bye"]
    assert [text for _, text, label in brief(rows) if not label] == ["bye"]
    assert rows.dropped == {UNCLEAN: 4, REPEATED: 2}
    check([record], rows)


def cut_off(record: dict[str, Any], *texts: str) -> dict[str, Any]:
    """Return a record in which messages of these words were cut off."""
    changed: dict[str, Any] = json.loads(json.dumps(record))
    for message in (m for node in changed["nodes"] for m in node["messages"]):
        if message["role"] == "assistant" and message["raw"] in texts:
            message["cut_off"] = True
    return changed


def test_a_message_that_was_cut_off_is_no_good_row() -> None:
    """It stays in the prompts after it; the one beside it is bad, with nothing to pair it with."""
    turns = {
        (0, 0): ["It is ca"],
        (0, 1): ["Hm, th"],
        (1, 0): [SEARCH, "a"],
        (1, 1): ["b"],
        (2, 0): [BOOK, "c"],
        (2, 1): ["d"],
    }
    record = cut_off(told(turns, beam=2), "It is ca", "Hm, th")
    rows = make_rows([record], SYSTEM)
    assert [text for _, text, label in brief(rows) if label] == [SEARCH, "a", BOOK, "c"]
    assert [text for _, text, label in brief(rows) if not label] == ["Hm, th", "d"]
    assert rows.sft[0]["prompt"][2] == {"role": "assistant", "content": "It is ca"}
    assert [(better, worse) for _, better, worse in pairs(rows)] == [(BOOK, "d")]
    assert rows.dropped == {CUT_OFF: 1, UNPAIRED: 1, ASTRAY: 1}
    check([record], rows)


def test_a_message_that_once_was_whole_is_good() -> None:
    """Drawn twice, and cut off once: where it ends, the model has shown."""
    turns = {
        (0, 0): ["Where?"],
        (0, 1): ["Where?"],
        (1, 0): [SEARCH, BOOK, "bye"],
        (1, 1): ["bye"],
        (1, 2): [SEARCH, BOOK, "bye"],
        (1, 3): ["bye"],
    }
    record = told(turns, beam=4, max_outputs=4, reward="terminal")
    once = cut_off(record, "Where?")
    ways = [node for node in once["nodes"] if node["golden"] and node["step"] == 0]
    assert len(ways) == 2
    del ways[0]["messages"][0]["cut_off"]
    texts = [text for _, text, label in brief(make_rows([once], SYSTEM)) if label]
    assert texts == ["Where?", SEARCH, BOOK, "bye"]
    check([once], make_rows([once], SYSTEM))
    twice = make_rows([cut_off(record, "Where?")], SYSTEM)
    assert [text for _, text, label in brief(twice) if label] == [SEARCH, BOOK, "bye"]


def test_rows_are_marked_with_what_the_model_wrote_spaces_and_all() -> None:
    record = told({(0, 0): [f" {SEARCH}\n", BOOK, " bye "]}, beam=1)
    rows = make_rows([record], SYSTEM)
    assert [text for _, text, _ in brief(rows)] == [f" {SEARCH}\n", BOOK, " bye "]
    check([record], rows)
