"""What models think and what they say; and calls that stand among words."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from chat_server import ChatServer, chat_server, says
from hypothesis import given, settings
from hypothesis import strategies as st
from test_agents import PLAIN, TOOLS, WAYS, WRITTEN, tokenizer

from agents.advice import MANY, advice
from agents.backends.canned import CannedBackend
from agents.backends.chat_tokens import ChatTokens
from agents.backends.transformers import TransformersBackend
from agents.base import ChatMessage, Completion, Sampling
from agents.options import PlayOptions
from agents.tool_calling import ToolCallingAgent
from agents.tool_formats import read_native, without_thoughts
from benchmarks.__main__ import main as benchmark
from josh_search.__main__ import main as search_main
from toolwoz_gym.actions import holds_call, parse_action
from toolwoz_gym.types import Message, ToolSpec

VIEW = (Message("user", "A hotel in the north, please."),)

# Thoughts.

MARKS = [
    ("<think>", "</think>"),
    ("<thinking>\n", "\n</thinking>"),
    ("<thought>", "</thought>"),
    ("<Reasoning>", "</Reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<inner_thoughts>", "</inner_thoughts>"),
    ('<thinking effort="low">', "</thinking>"),
    ("<antThinking>", "</antThinking>"),
    ("<|think|>", "<|/think|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>\n<|begin_of_solution|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("analysis", "assistantfinal"),
    ("<think>", "</think>\n\n<answer>"),
]


@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_thoughts_are_taken_out(begin: str, end: str) -> None:
    thought = f"{begin}So: END_CONVERSATION, search_hotel().{end}"
    assert without_thoughts(f"{thought}\n\nIn which area?\n") == "In which area?"
    assert without_thoughts(f"So.{end} In which area?") == "In which area?"  # the template's begin
    assert without_thoughts(f" {begin}So I must") == ""  # cut off
    assert without_thoughts(f"{thought}") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think>One.<think>b</think> Two.", "One. Two."),
        ("<think>a<think>b</think>c</think>One.", "One."),
        ("Hi. <think>a<think>b</think>c</think> One.", "Hi. One."),
        ("<think>The mark <think> begins it.</think>One.", "One."),
        ("One.\n<think>But", "One."),
        ("<think>a</think>One. <think>But", "One."),
        ("<think>a</think><answer>One.</answer>", "One."),
        (f"<think>a</think>\n{WRITTEN}", WRITTEN),
    ],
)
def test_thoughts_repeated_nested_and_cut_off(text: str, said: str) -> None:
    assert without_thoughts(text) == said


@pytest.mark.parametrize(
    "text",
    [
        " In which area?\n",
        "I <think> so.",
        "An analysis, please.",
        "Analysis of <b>that</b>.",
        "",
        '{"name": "note", "arguments": {"text": "<think>a</think> b"}}',
        '<tool_call>{"name": "note", "arguments": {"text": "[THINK]"}}</tool_call>',
    ],
)
def test_what_is_no_thought_stays_as_it_is(text: str) -> None:
    assert without_thoughts(text) == text


@given(st.lists(st.sampled_from([*sum(MARKS, ()), "a", " ", "\n", ".", "{", '"', WRITTEN])))
@settings(max_examples=100, deadline=None)
def test_any_thought_is_read(parts: list[str]) -> None:
    text = "".join(parts)
    assert len(without_thoughts(text)) <= len(text)
    parse_action(read_native(text))


THINKING = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def test_thoughts_that_the_template_begins_can_be_cut_off() -> None:
    bare = tokenizer(THINKING)
    tokens, written = ChatTokens(bare), bare("I must")["input_ids"]
    prompt = tokens.encode([{"role": "user", "content": "Go."}])
    for native in (False, True):
        assert without_thoughts(tokens.decode(written, native=native, cut_off_after=prompt)) == ""
        assert "I must" in tokens.decode(written, native=native)
    plain = ChatTokens(tokenizer(PLAIN)).encode([{"role": "user", "content": "<think>"}])
    assert "I must" in tokens.decode(written, native=True, cut_off_after=plain)


def test_marks_of_thoughts_can_be_special_tokens() -> None:
    bare = tokenizer(PLAIN)
    bare.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    written = bare("[THINK]So.[/THINK]In which area?<|im_end|>")["input_ids"]
    text = ChatTokens(bare).decode(written[:-1], native=False)
    assert without_thoughts(text) == "In which area?"


def test_a_model_in_process_that_only_thinks_says_nothing() -> None:
    torch.manual_seed(0)
    tokens = tokenizer(THINKING)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with TransformersBackend(model, tokens) as backend:
        message = ToolCallingAgent(backend, "Help.", max_tokens=3).act(VIEW, seed=1)
    assert message.mistake == "only thoughts" and message.cut_off
    assert message.raw and message.raw.startswith("<think>")


class Writes:
    """A model that writes one text."""

    def __init__(self, text: str, finish: Any = "stop") -> None:
        self.text, self.finish = text, finish

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        completion = CannedBackend([self.text]).complete(prompt, sampling)
        return replace(completion, finish=self.finish)


def written(text: str, way: str = "tool_calling", finish: Any = "stop", **more: Any) -> Message:
    """Return what an agent makes of what its model writes."""
    agent = ToolCallingAgent(Writes(text, finish), "Help.", read=WAYS[way].read, **more)
    return agent.act(VIEW, seed=0)


def test_an_agents_thoughts_are_kept_but_not_said() -> None:
    text = "<think>search_hotel() or not?</think>\n\nIn which area?"
    message = written(text)
    assert (message.content, message.error, message.raw) == ("In which area?", None, text)
    message = written(f"<think>Hm.</think>\n{WRITTEN}")
    assert message.call == parse_action(WRITTEN).call
    action = '{"name": "respond", "arguments": {"content": "In which area?"}}'
    assert written(f"<think>Hm.</think>{action}", "act").content == "In which area?"
    react = f"<think>\nAction: {WRITTEN}</think>Thought: So.\nAction: {action}"
    assert written(react, "react").content == "In which area?"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("text", "finish", "kind"),
    [
        ("<think>So I", "length", "only thoughts"),
        ("<think>So.</think>", "stop", "only thoughts"),
        ("", "length", "only thoughts"),  # a server keeps the thoughts for itself
    ],
)
def test_thoughts_alone_are_a_mistake(way: str, text: str, finish: Any, kind: str) -> None:
    message = written(text, way, finish)
    assert (message.mistake, message.content, message.raw) == (kind, text, text)
    assert message.error and message.cut_off == (finish == "length")


# Calls among words.

AMONG_WORDS = [
    f"```json\n{WRITTEN}\n```",
    f"```\n{WRITTEN}\n```",
    f"I will look for one.\n{WRITTEN}",
    f"Sure: {WRITTEN} One moment, please.",
    f"<think>Hm.</think>\n\n```json\n{WRITTEN}\n```",
    f"<tool_call>{WRITTEN}</tool_call>",
    f"[{WRITTEN}, {WRITTEN}]",
    "Let me see. {'name': 'search_hotel', 'parameters': {'area': 'north'}}",
    'Here: {"tool": "search_hotel", "args": {}}',
    'Well: {"action": "search_hotel", "action_input": {"area": "north"}}',
    'Calling {"search_hotel": {"area": "north"}}',
    'search_hotel(area="north")',
    "search_hotel()",
    'I call `search_hotel(area="north", stars=4)`.',
    "```python\nprint(search_hotel(area='north'))\n```",
    'calculate(expression="1 + 1")',
    'calculate("1 + 1")',
    'search_hotel{"area": "north"}',
    'search_hotel[ARGS]{"area": "north"}',
    'search_hotel: {"area": "north"}',
    "Action: search_hotel\nAction Input: the north",
    "name: search_hotel\narguments:\n  area: north",
    "<function=search_hotel><parameter=area>north</parameter></function>",
    '<function_calls><invoke name="search_hotel"></invoke></function_calls>',
    "<tool_code>\nsearch_hotel</tool_code>",
    "<search_hotel><area>north</area></search_hotel>",
    'functions.search_hotel:0{"area": "north"}',
    "<|tool_calls_section_begin|>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search",
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
    "to=functions.search_hotel <|constrain|>json<|message|>{}",
]
"""What chat models write who have learnt other formats."""

WORDS = [
    "Here is what I found:\n```\n1. Quiet House\n```",
    'The hotel ("Quiet House") is in the north.',
    "The price (total = 50) is for two.",
    "I can refund it to your gift_card (balance $5) or credit_card_123.",
    "It would be basic_economy (non-refundable), or business.",
    "I searched, and found 3 restaurant(s).",
    "Your name: Ann. Your item_id 12 = the lamp.",
    "I will use the search tool, and call you back.",
    "You can choose among {economy, business}.",
]


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["text", "native"])
@pytest.mark.parametrize("text", AMONG_WORDS)
def test_a_call_among_words_is_not_said(text: str, tools: tuple[ToolSpec, ...]) -> None:
    message = written(text, tools=tools)
    assert message.mistake == "call among words" and message.raw == text
    assert message.error and WRITTEN[:9] in message.error


@pytest.mark.parametrize("text", [f"{WRITTEN} {WRITTEN}", f"{WRITTEN}\nDone!"])
def test_a_call_with_something_after_it_is_malformed(text: str) -> None:
    assert written(text).mistake == "not JSON"


@pytest.mark.parametrize("text", WORDS)
def test_words_that_only_look_like_a_call_are_said(text: str) -> None:
    assert not holds_call(text)
    assert written(text).content == text


def test_what_people_say_is_neither_a_call_nor_a_thought(shared: Path) -> None:
    with zipfile.ZipFile(shared / "data" / "MultiWOZ_2.1_val.zip") as archive:
        dialogues = json.loads(archive.read("MultiWOZ_2.1/data.json")).values()
    said = [turn["text"] for dialogue in dialogues for turn in dialogue["log"]]
    assert len(said) == 14_730
    assert not [text for text in said if holds_call(text) or without_thoughts(text) != text]


def test_a_call_among_the_words_of_a_respond() -> None:
    text = '{"name": "respond", "arguments": {"content": "search_hotel()"}}'
    assert written(text, "act").mistake == "call among words"


# What a run says at its end.


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


def ended(
    command: str, server: ChatServer, run: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> list[str]:
    """Run a command, and return its hints."""
    args = [command, "--run", str(run), "--backend", "openai", "--base-url", server.url]
    args += ["--model", "m", "--tasks", "2", *more]
    assert (benchmark if command == "evaluate" else search_main)(args) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("hint: ")]


def test_a_run_whose_thoughts_take_all_tokens_says_so(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = says(None, message={"reasoning_content": "Hm."}, finish_reason="length")
    (hint,) = ended("evaluate", server, tmp_path, capsys, "--max-steps", "3")
    assert hint == (
        "hint: 6 of 6 messages were malformed because thoughts took all of --max-tokens (96): "
        "raise it, or have the model think less"
    )


@pytest.mark.parametrize("command", ["evaluate", "harvest"])
def test_a_run_of_calls_among_words_says_what_to_try(
    command: str, server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = says(f"```json\n{WRITTEN}\n```")
    more = ["--max-steps", "3"] if command == "evaluate" else ["--strategy", "chains"]
    more += [] if command == "evaluate" else ["--patience", "1", "--max-steps", "3"]
    (hint,) = ended(command, server, tmp_path, capsys, *more)
    assert "messages were malformed, most of them as 'call among words': " in hint
    assert hint.endswith("try --tool-format native or --constrain")


def test_a_run_whose_customer_only_thinks_says_so(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = says("<think>I am to", finish_reason="length")
    hints = ended("harvest", server, tmp_path, capsys, "--user", "goal", "--agent", "expert")
    assert hints == [
        "hint: the customer's model said nothing in 2 of 2 dialogues: if it thinks first, raise "
        "--user-max-tokens (128)"
    ]


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (PlayOptions(constrain=True), "raise --max-tokens (96)"),
        (PlayOptions(agent="act"), "try --constrain"),
        (PlayOptions(), "try --constrain"),  # the bundled model has no format of its own
        (PlayOptions(tool_format="text"), "try --tool-format native or --constrain"),
        (
            PlayOptions(backend="openai", model="m", tool_format="native"),
            "try --tool-format text or --constrain",
        ),
    ],
)
def test_the_remedy_is_one_that_the_run_has_not_tried(options: PlayOptions, remedy: str) -> None:
    few = int(MANY * 100)
    counts: dict[str, Any] = {"outputs": 100, "dialogues": 9, "user_faults": {"said nothing": 9}}
    (hint,) = advice(options, malformed={"not JSON": few - 1, "no action": 1}, **counts)
    assert "most of them as 'not JSON'" in hint and hint.endswith(remedy)
    assert not [*advice(options, malformed={"not JSON": few - 1, "empty": 9}, **counts)]
    scripted = replace(options, agent="expert", constrain=False, tool_format="auto")
    assert not [*advice(scripted, malformed={"not JSON": 99}, **counts)]
