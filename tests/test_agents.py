"""Agents that a language model plays: what it is shown, and what is read of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xgrammar
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from agents import act, react, tool_calling
from agents.backends.canned import CannedBackend
from agents.backends.chat_tokens import ChatTokens
from agents.backends.grammar import Grammars
from agents.backends.transformers import TransformersBackend
from agents.base import ChatMessage, Completion, Sampling
from agents.options import AgentOptions
from agents.scripted import ExpertAgent
from agents.tool_calling import ToolCallingAgent, system_prompt
from agents.tool_formats import is_native, native_answer, native_chat, read_native
from josh_search.harvest import Tally
from josh_search.publish import openai_dpo, openai_sft
from josh_search.rows import make_rows
from josh_search.search import SearchOptions, search
from josh_search.tree import tree_to_json
from toolwoz_gym.actions import format_call, parse_action
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.records import message_from_json, write_jsonl
from toolwoz_gym.rollout import play
from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.tools import POLICY, TOOLS
from toolwoz_gym.types import Message, Task, ToolCall, ToolSpec, Usage, UsageError
from toolwoz_gym.users.scripted import ScriptedUser

DOCS = Path(__file__).resolve().parents[1] / "docs" / "agents.md"

WORLD = load_builtin(CityOptions.parse("domains=1,constraints=1,failures=0"))
DIALOGUE = Dialogue(WORLD, ScriptedUser(), max_steps=30)

CALL = ToolCall("search_hotel", {"area": "north"})
WRITTEN = '{"name": "search_hotel", "arguments": {"area": "north"}}'

# Chat templates in the ways of their models, shortened.

PLAIN = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

HERMES = """\
{% if tools %}<|im_start|>system
Tools: <tools>{% for t in tools %}
{{ t | tojson }}{% endfor %}
</tools><|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.tool_calls %}<|im_start|>assistant
{{ m.content }}{% for c in m.tool_calls %}<tool_call>
{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA = """\
{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}\
{{ raise_exception('one call at a time') }}{% endif %}<|start|>assistant<|end|>

{% set c = m.tool_calls[0].function %}{"name": "{{ c.name }}", "parameters": \
{{ c.arguments | tojson }}}<|eot|>{% elif m.role == 'tool' %}<|start|>ipython<|end|>

{{ m.content | tojson }}<|eot|>{% else %}<|start|>{{ m.role }}<|end|>

{% if tools and loop.first %}Functions: {% for t in tools %}{{ t | tojson }}{% endfor %}

{% endif %}{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|start|>assistant<|end|>

{% endif %}"""

MISTRAL = """\
<s>{% for m in messages %}{% if m.role == 'user' or m.role == 'system' %}\
{% if tools and loop.first %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}\
[INST] {{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}\
{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}\
{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}, \
"id": "{{ c.id }}"}{% endfor %}]</s>{% elif m.role == 'tool' %}[TOOL_RESULTS] \
{"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]\
{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"""

NAMED = """\
<s>{% for m in messages %}{% if m.role == 'user' or m.role == 'system' %}\
{% if tools and loop.first %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}\
[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}{% for c in m.tool_calls %}\
[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}</s>\
{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]\
{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"""
"""As newer models of Mistral's write calls."""

NATIVE = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "named": NAMED}
ENDS = {"hermes": "<|im_end|>", "llama": "<|eot|>", "mistral": "</s>", "named": "</s>"}


def tokenizer(template: str) -> transformers.PreTrainedTokenizerBase:
    """Return one whose tokens are bytes, but for two that are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|im_end|>", "[TOOL_CALLS]", *alphabet]
    bare = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(names)}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        additional_special_tokens=["[TOOL_CALLS]"],
        chat_template=template,
    )


def rendered(template: str, chat: Sequence[dict[str, Any]], **options: Any) -> str:
    text = tokenizer(template).apply_chat_template(list(chat), tokenize=False, **options)
    assert isinstance(text, str)
    return text


# The model's own formats.


@pytest.mark.parametrize("template", NATIVE.values(), ids=NATIVE)
def test_templates_with_tools_are_known(template: str) -> None:
    probe = partial(tokenizer(template).apply_chat_template, tokenize=False)
    assert is_native(probe) and is_native(probe, silences=True)


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        HERMES.replace("tools", "documents"),  # shows no tools
        HERMES.replace("{% elif m.tool_calls %}", "{% elif m.other_calls %}"),  # nor calls
        HERMES.replace("{{ m.content }}\n</tool_response>", "</tool_response>"),  # nor answers
        HERMES.replace('{"name":', '{"tool":'),  # in a form that is not read
        "{% for m in messages %}{{ m.content + 1 }}{% endfor %}",
        "{{ raise_exception('no tools') if tools }}",
    ],
)
def test_other_templates_are_not(template: str) -> None:
    assert not is_native(partial(tokenizer(template).apply_chat_template, tokenize=False))


names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
marks = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>"]
    + ["</think>", "{", "}", "]", '"', "\\", ";", ",", WRITTEN]
)
plain = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
words = plain | st.lists(plain | marks, max_size=5).map("".join)
values = st.recursive(
    words | st.integers(-99, 99) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
any_call = st.builds(ToolCall, names, st.dictionaries(names | words, values, max_size=3))


@pytest.mark.parametrize("name", NATIVE)
@given(call=any_call)
@settings(max_examples=50, deadline=None)
def test_a_call_is_read_as_its_template_writes_it(name: str, call: ToolCall) -> None:
    prompt = [{"role": "user", "content": "Go."}]
    chat = [*native_chat(prompt), native_answer(prompt, format_call(call))]
    before = rendered(NATIVE[name], chat[:-1], add_generation_prompt=True)
    text = rendered(NATIVE[name], chat).removeprefix(before)
    assert parse_action(read_native(text.rpartition(ENDS[name])[0])).call == call


FORMS = {
    "hermes": '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>',
    "hermes, more calls": '<tool_call>{{"arguments": {arguments}, "name": "{name}"}}</tool_call>\n'
    '<tool_call>{{"name": "b", "arguments": {arguments}}}</tool_call>',
    "llama": '{{"name": "{name}", "parameters": {arguments}}}',
    "llama, more calls": '<|python_tag|>{{"name": "{name}", "parameters": {arguments}}}; '
    '{{"name": "b", "parameters": {arguments}}}',
    "mistral": '[TOOL_CALLS] [{{"name": "{name}", "arguments": {arguments}, "id": "1"}}]',
    "mistral, more calls": '[TOOL_CALLS][{{"name": "{name}", "arguments": {arguments}}}, '
    '{{"name": "b", "arguments": {arguments}}}]',
    "named": "[TOOL_CALLS]{name}{arguments}",
    "named, with marks": "[TOOL_CALLS]{name}[CALL_ID]a1[ARGS]{arguments}",
    "named, more calls": "[TOOL_CALLS]{name}[ARGS]{arguments}[TOOL_CALLS]b[ARGS]{arguments}",
}

thoughts = st.just("") | words.map(lambda t: f"<think>{t.replace('</think>', '')}</think>\n\n")
unopened = st.sampled_from(["", "Well.", "<tool_call></tool_call> around it", f"Or {WRITTEN}?"])
"""Thoughts whose beginning the template has written."""


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(
    call=any_call,
    before=thoughts | unopened.map(lambda thought: f"{thought}</think>"),
    ascii_only=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_marks_in_arguments_are_none(
    form: str, call: ToolCall, before: str, ascii_only: bool
) -> None:
    arguments = json.dumps(call.arguments, ensure_ascii=ascii_only)
    text = before + form.format(name=call.name, arguments=arguments)
    assert parse_action(read_native(text)).call == call


CHAT: list[ChatMessage] = [
    {"role": "system", "content": "Help."},
    {"role": "user", "content": "A hotel."},
    {"role": "assistant", "content": WRITTEN},
    {"role": "tool", "content": "[]"},
    {"role": "assistant", "content": "{oops"},
    {"role": "tool", "content": "Error: not valid JSON"},
    {"role": "assistant", "content": "There is none."},
    {"role": "user", "content": "Oh."},
]


def test_a_dialogue_in_hermes_format() -> None:
    shown = rendered(HERMES, native_chat(CHAT), add_generation_prompt=True)
    assert shown == (
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nA hotel.<|im_end|>\n"
        f"<|im_start|>assistant\n<tool_call>\n{WRITTEN}\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n[]\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n{oops<|im_end|>\n"
        "<|im_start|>user\nError: not valid JSON<|im_end|>\n"
        "<|im_start|>assistant\nThere is none.<|im_end|>\n<|im_start|>user\nOh.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", NATIVE.values(), ids=NATIVE)
def test_a_dialogue_in_any_format(template: str) -> None:
    shown = rendered(template, native_chat(CHAT), tools=[])
    at = [shown.index(said) for said in ("Help.", "A hotel.", "search_hotel", "[]", "{oops", "Oh.")]
    assert at == sorted(at)


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN,
        f"<tool_call>\n{WRITTEN}\n</tool_call>",
        f"<tool_call>{WRITTEN}",  # cut off after the call
        f"I will look.\n<tool_call>{WRITTEN}</tool_call><tool_call>{{}}</tool_call>",
        f"<think>A call: <tool_call>{{}}</tool_call></think>\n\n<tool_call>{WRITTEN}</tool_call>",
        '{"name": "search_hotel", "parameters": {"area": "north"}}',
        '<|python_tag|>{"type": "function", "name": "search_hotel", "parameters": '
        '{"area": "north"}}; {"name": "more", "parameters": {}}',
        f'[TOOL_CALLS] [{WRITTEN[:-1]}, "id": "123456789"}}, {{"name": "more"}}]',
        f"[TOOL_CALLS]{WRITTEN}",
        '[TOOL_CALLS]search_hotel[ARGS]{"area": "north"}',
        '[TOOL_CALLS]search_hotel[CALL_ID]123456789[ARGS]{"area": "north"}[TOOL_CALLS]b[ARGS]{}',
        '[TOOL_CALLS]search_hotel{"area": "north"}',
        f'[TOOL_CALLS] [{WRITTEN}, {{"name": "mo',  # cut off in the second call
        f"Shall I? <tool_call>{{}}</tool_call></think><tool_call>{WRITTEN}</tool_call>",
    ],
)
def test_ways_to_write_a_call(text: str) -> None:
    assert parse_action(read_native(text)).call == CALL


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<tool_call>search the hotels</tool_call>", "wrong keys"),
        ('<tool_call>{"name": "search_hotel"</tool_call>', "not JSON"),
        (f"<tool_call>{WRITTEN} and more</tool_call>", "not JSON"),
        ('{"name": "search_hotel"}', "wrong keys"),
        ('[TOOL_CALLS] [{"name": "search_hotel"}]', "wrong keys"),
        ('[TOOL_CALLS]search_hotel[ARGS]{"area": ', "not JSON"),
        ('[TOOL_CALLS]search_hotel{"area": "north"}, "name": "book_hotel"', "wrong types"),
        ('{"name": "a", "arguments": {"x": 1}, "parameters": {"y": 2}}', "wrong keys"),
        ('{"name": "search_hotel", "parameters": []}', "wrong types"),
        ('{"name": "a", "arguments": {"x": NaN}}', "not JSON"),
        ("<tool_call>" + '{"a": ' + "[" * 9000, "nested too deeply"),
        ('<tool_call>{"name": "note", "arguments": {"text": "a </tool_call> b', "not JSON"),
        ('{"name": "note", "parameters": {"text": "a <tool_call> b', "not JSON"),
        ("<think>Where was I", "empty"),
        ("<think>So.</think>", "empty"),
    ],
)
def test_what_is_marked_as_a_call_and_is_none_is_malformed(text: str, kind: str) -> None:
    assert parse_action(read_native(text)).mistake == kind


def test_what_is_not_marked_is_said() -> None:
    assert read_native("<think>Hm.</think>\n\nIn which area? ") == "In which area?"
    assert read_native("Hm.\n</think>\n\nIn which area? ") == "In which area?"
    assert read_native("I <think> so.") == "I <think> so."


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_read(text: str) -> None:
    parse_action(read_native(f"<tool_call>{text}"))
    parse_action(read_native(text))


def test_marks_of_calls_can_be_special_tokens() -> None:
    bare = tokenizer(MISTRAL)
    tokens = ChatTokens(bare)
    written = bare('[TOOL_CALLS]search_hotel[ARGS]{"area": "north"}')["input_ids"]
    assert bare.convert_tokens_to_ids("[TOOL_CALLS]") == written[0]
    assert tokens.decode(written, native=True) == WRITTEN
    assert tokens.decode(written, native=False) == 'search_hotel[ARGS]{"area": "north"}'


@pytest.mark.parametrize("template", ["{{ raise_exception('no\nsystem') }}", "{{ 1 + '' }}"])
def test_a_template_that_refuses_a_chat_is_no_bug(template: str) -> None:
    strict = tokenizer(template)
    strict.name_or_path = "strict/model"
    chat: list[ChatMessage] = [{"role": "user", "content": "Hi."}]
    refused = r"^the chat template of 'strict/model' refuses the chat \([^\n]*\)"
    with pytest.raises(UsageError, match=f"{refused}: take another model$"):
        ChatTokens(strict).encode(chat)
    with pytest.raises(UsageError, match=f"{refused}: take --tool-format text$"):
        ChatTokens(strict).encode(chat, TOOLS)


def test_halves_of_surrogate_pairs_are_not_shown() -> None:
    call = '{"name": "\\ud83d", "arguments": {"\\ud83d": "\\ud83d"}}'
    prompt = [{"role": "assistant", "content": call}, {"role": "tool", "content": "None."}]
    assert parse_action(call).call == ToolCall("\ud83d", {"\ud83d": "\ud83d"})
    function = native_chat(prompt)[0]["tool_calls"][0]["function"]
    assert function == {"name": "?", "arguments": {"?": "?"}}
    tokens = ChatTokens(tokenizer(HERMES))
    prompt.append({"role": "user", "content": "\ud83d"})
    assert tokens.decode(tokens.encode(prompt, TOOLS), native=False).count("?") >= 4
    assert "user\n?" in tokens.decode(tokens.encode(prompt), native=False)


# Parsers.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WRITTEN, Message("assistant", call=CALL)),
        (
            '{"name": "respond", "arguments": {"content": " In which {area}? "}}',
            Message("assistant", "In which {area}?"),
        ),
    ],
)
def test_actions_are_read(text: str, expected: Message) -> None:
    assert act.read(text) == act.read(f" {text}\n") == expected
    assert react.read(f"Thought: Where?\nAction: {text}") == expected
    assert react.read(f"**Thought:** Action: later.\n**Action:**\n{text}") == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("In which area?", "no action"),
        ('{"name": "respond", "arguments": {}}', "wrong types"),
        ('{"name": "respond", "arguments": {"content": 5}}', "wrong types"),
        ('{"name": "respond", "arguments": {"content": " "}}', "wrong types"),
        ('{"name": "respond"}', "wrong keys"),
        (f"{WRITTEN} {WRITTEN}", "not JSON"),
        ("", "empty"),
    ],
)
def test_what_is_no_action_is_malformed(text: str, kind: str) -> None:
    message = act.read(text)
    assert message.mistake == kind and message.error and message.content == text
    thought = f"Thought: Hm.\nAction:{text}"
    message = react.read(thought)
    assert message.mistake == kind and message.error and message.content == thought


@pytest.mark.parametrize("text", ["Thought: Hm.", "", WRITTEN, "Thought: no Action: here"])
def test_a_thought_alone_is_no_action(text: str) -> None:
    message = react.read(text)
    assert message.mistake == "no action" and message.error and message.content == text


# The agents.

WAYS = {"tool_calling": tool_calling, "react": react, "act": act}
JOSH = SearchOptions(strategy="josh")


class Model:
    """Writes what an expert does, in the way of an agent, and now and then something else."""

    def __init__(self, task: Task, way: str, error_rate: float = 0.0) -> None:
        self.expert, self.way, self.error_rate = ExpertAgent(task), way, error_rate
        self.prompts: list[list[ChatMessage]] = []
        self.tools: set[int] = set()

    def agent(self, tools: tuple[ToolSpec, ...] = ()) -> ToolCallingAgent:
        way = WAYS[self.way]
        system = POLICY if tools else way.system_prompt(POLICY, TOOLS)
        return ToolCallingAgent(self, system, tools=tools, read=way.read)

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        self.prompts.append(list(prompt))
        self.tools.add(len(tools))
        return Completion(self.write(Luck(sampling.seed, "slip")), Usage(5, 2), "stop")

    def write(self, luck: Luck) -> str:
        if luck.chance(self.error_rate):
            return luck.choice(['{"name": "search_hotel"', "Hm.", "Thought: Hm.", f" {WRITTEN}"])
        message = self.expert.act(self.view, seed=0)
        call = message.call or ToolCall("respond", {"content": message.content})
        if self.way == "react":
            return f"Thought: So.\nAction: {format_call(call)}"
        return format_call(call) if message.call or self.way == "act" else message.content


class Player:
    """Lets the model see the dialogue itself: it is an expert, who reads no prompts."""

    def __init__(self, model: Model, tools: tuple[ToolSpec, ...] = ()) -> None:
        self.model, self.agent = model, model.agent(tools)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        self.model.view = view
        return self.agent.act(view, seed=seed)


@pytest.mark.parametrize("way", WAYS)
def test_a_task_is_solved_in_every_way(way: str) -> None:
    task = WORLD.tasks("train")[0]
    model = Model(task, way)
    episode = play(DIALOGUE, Player(model), task, seed=0)
    assert episode.outcome == "success" and model.tools == {0}
    written = [m["content"] for m in model.prompts[-1] if m["role"] == "assistant"]
    said = [m for m in episode.messages if m.role == "assistant"]
    assert written == [m.raw for m in said[:-1]]  # thoughts are in what the model is shown
    assert all("Thought" not in m.content and "respond" not in m.content for m in said)


@pytest.mark.parametrize("way", WAYS)
def test_a_full_context_cuts_the_dialogue_off(way: str) -> None:
    task = next(task for task in WORLD.tasks("train") if len(task.goals) > 1)

    class Small(Model):
        def complete(
            self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
        ) -> Completion:
            if len(prompt) > 2:
                return Completion("", Usage(), "context")
            return super().complete(prompt, sampling, tools)

    episode = play(DIALOGUE, Player(Small(task, way)), task, seed=0)
    assert (episode.outcome, episode.steps) == ("truncated", 1)


SILENT: list[Message] = [
    Message("user", "A hotel."),
    Message("assistant", call=CALL, raw=WRITTEN),
    Message("tool", "[]", name="search_hotel"),
    Message("user", "Hello?"),
    Message("assistant", "{oops", error="not valid JSON", mistake="not JSON", raw="{oops"),
    Message("tool", "Error: not valid JSON"),
    Message("user", "Hello?"),
]
"""A dialogue in which the agent falls silent twice."""


def test_a_customer_that_nobody_answered_is_shown_in_one_message() -> None:
    chat = tool_calling.render_prompt("Help.", SILENT)
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    assert [message["role"] for message in chat] == roles
    assert chat[3]["content"] == "[tool] []\nHello?"
    assert chat[5]["content"] == "[tool] Error: not valid JSON\nHello?"


def test_a_customer_that_nobody_answered_in_the_models_own_format() -> None:
    """An answer of a tool cannot hold what the customer says: some templates refuse that."""
    chat = native_chat(tool_calling.render_prompt("Help.", SILENT, native=True))
    roles = ["system", "user", "assistant", "tool", "user", "assistant", "user"]
    assert [message["role"] for message in chat] == roles
    assert chat[6]["content"] == "Error: not valid JSON\nHello?"
    for template in NATIVE.values():
        assert "Hello?" in rendered(template, chat, tools=[])


ALTERNATING = (
    """\
{% set ns = namespace(users=true) %}{% for m in messages %}\
{% if m.role not in ('system', 'tool') and not m.tool_calls %}\
{% if (m.role == 'user') != ns.users %}{{ raise_exception('roles must alternate') }}{% endif %}\
{% set ns.users = not ns.users %}{% endif %}{% endfor %}"""
    + MISTRAL
)
"""As models of Mistral's have it: calls and their answers are skipped."""


def test_templates_that_want_roles_to_alternate() -> None:
    tokens = ChatTokens(tokenizer(ALTERNATING))
    assert tokens.encode(tool_calling.render_prompt("Help.", SILENT))
    chat = tool_calling.render_prompt("Help.", SILENT, native=True)
    assert tokens.encode(chat[:4], TOOLS)
    with pytest.raises(UsageError, match="must alternate\\): take --tool-format text"):
        tokens.encode(chat[:5], TOOLS)
    probe = partial(tokenizer(ALTERNATING).apply_chat_template, tokenize=False)
    assert is_native(probe) and not is_native(probe, silences=True)


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["text", "native"])
@pytest.mark.parametrize("max_outputs", [1, 2])
def test_prompts_only_ever_grow(tools: tuple[ToolSpec, ...], max_outputs: int) -> None:
    records, _ = grown("tool_calling", tools, replace(JOSH, max_outputs=max_outputs))
    silences = 0
    for record in records:
        paths: list[list[Message]] = []
        for node in record["nodes"]:
            above = [] if node["parent"] is None else paths[node["parent"]]
            path = [*above, *map(message_from_json, node["messages"])]
            paths.append(path)
            asked = [i for i, message in enumerate(path) if message.role == "assistant"]
            render = partial(tool_calling.render_prompt, POLICY, native=bool(tools))
            shown = [render(path[:i]) for i in asked]
            chats = [native_chat(chat) if tools else chat for chat in shown]
            assert all(b[: len(a)] == a and len(b) > len(a) for a, b in pairwise(chats))
            roles = [message["role"] for chat in chats for message in chat]
            assert ("user", "user") not in pairwise(roles)
            said = [message.role for message in path]
            silences += ("tool", "user") in pairwise(said)
    assert silences > 5


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["text", "native"])
@pytest.mark.parametrize(
    ("text", "finish", "cut_off"),
    [
        ("In which", "length", True),
        ("In which area?", "stop", False),
        (WRITTEN[:-1], "length", True),
        (WRITTEN, "length", False),  # all that was cut off is its end
    ],
)
def test_a_message_knows_that_it_was_cut_off(
    tools: tuple[ToolSpec, ...], text: str, finish: Any, cut_off: bool
) -> None:
    class Short(Model):
        def complete(
            self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
        ) -> Completion:
            return Completion(text, Usage(), finish)

    agent = Short(WORLD.tasks("train")[0], "tool_calling").agent(tools)
    assert agent.act(SILENT[:1], seed=0).cut_off == cut_off


def test_words_that_were_read_out_of_a_call_are_whole() -> None:
    texts = [
        '{"name": "respond", "arguments": {"content": "Hello!"}}',
        '{"name": "respond", "arguments": {"content": "Hel',
    ]

    class Short(CannedBackend):
        def complete(
            self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
        ) -> Completion:
            return replace(super().complete(prompt, sampling, tools), finish="length")

    for read, before in ((act.read, ""), (react.read, "Thought: Greet.\nAction: ")):
        backend = Short([before + text for text in texts])
        agent = ToolCallingAgent(backend, "Help.", read=read)
        assert [agent.act(SILENT[:1], seed=0).cut_off for _ in texts] == [False, True]


def grown(
    way: str, tools: tuple[ToolSpec, ...] = (), options: SearchOptions = JOSH
) -> tuple[list[dict[str, Any]], list[list[ChatMessage]]]:
    """Return the records of searches, as they are read from a file, and what the model saw."""
    records, prompts = [], []
    for number in range(8):
        task = WORLD.tasks("train")[number]
        model = Model(task, way, error_rate=0.4)
        tree = search(DIALOGUE, Player(model, tools), task, seed=number, options=options)
        records.append(json.loads(json.dumps(tree_to_json(tree, 0))))
        prompts += model.prompts
    return records, prompts


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_what_the_model_was_shown_and_wrote(way: str) -> None:
    records, prompts = grown(way)
    rows = make_rows(records, WAYS[way].system_prompt(POLICY, TOOLS))
    assert rows.sft
    assert all(row["prompt"] in prompts and "tools" not in row for row in rows.kto)
    raws = {m.get("raw") for r in records for node in r["nodes"] for m in node["messages"]}
    good = [row["completion"][0]["content"] for row in rows.sft]
    assert raws.issuperset(good)
    assert all(text.startswith("Thought: ") for text in good) == (way == "react")


@pytest.mark.parametrize("way", WAYS)
def test_malformed_outputs_are_counted_by_kind(way: str) -> None:
    records, _ = grown(way)
    tally = Tally(len(records))
    for record in records:
        tally.add(record)
    errors = [
        (message["error"], node["visits"])
        for record in records for node in record["nodes"] for message in node["messages"]
        if "error" in message
    ]  # fmt: skip
    expected = {"tool_calling": {"not JSON"}, "act": {"not JSON", "no action"}}
    assert {*tally.malformed} == expected.get(way, {"no action"})
    assert tally.to_json()["malformed"] == tally.malformed
    assert tally.malformed["not JSON"] == sum(
        n for e, n in errors if e.startswith("not valid JSON")
    )
    assert tally.malformed.total() == sum(visits for _, visits in errors) > 0


def test_native_rows_can_be_loaded(tmp_path: Path) -> None:
    records, _ = grown("tool_calling", TOOLS)
    rows = make_rows(records, POLICY, TOOLS).kto
    write_jsonl(tmp_path / "kto.jsonl", rows)
    files = {"train": str(tmp_path / "kto.jsonl")}
    loaded = load_dataset(
        "json", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["prompt"] for row in loaded] == [row["prompt"] for row in rows]
    assert [row["completion"] for row in loaded] == [row["completion"] for row in rows]


@pytest.mark.parametrize("template", NATIVE.values(), ids=NATIVE)
def test_native_rows_are_what_the_model_was_shown(template: str) -> None:
    tokens = ChatTokens(tokenizer(template))
    records, prompts = grown("tool_calling", TOOLS)
    shown = [tokens.encode(prompt, TOOLS) for prompt in prompts]
    rows = make_rows(records, POLICY, TOOLS)
    assert rows.sft and rows.dpo
    answers: set[tuple[str, str]] = set()
    for row in rows.kto:
        options = {"tools": json.loads(row["tools"])}
        prompt = rendered(template, row["prompt"], add_generation_prompt=True, **options)
        assert tokenizer(template)(prompt, add_special_tokens=False)["input_ids"] in shown
        whole = rendered(template, [*row["prompt"], *row["completion"]], **options)
        assert whole.startswith(prompt)
        assert (prompt, whole) not in answers
        answers.add((prompt, whole))


def test_native_rows_for_hosted_services() -> None:
    records, _ = grown("tool_calling", TOOLS)
    rows = make_rows(records, POLICY, TOOLS)
    example = next(openai_sft(rows.sft))
    assert [tool["function"]["name"] for tool in example["tools"]] == [t.name for t in TOOLS]
    (call, *_) = [message for message in example["messages"] if "tool_calls" in message]
    function = call["tool_calls"][0]["function"]
    assert call["content"] is None and isinstance(json.loads(function["arguments"]), dict)
    pair = next(openai_dpo(rows.dpo))
    assert pair["input"]["tools"] == example["tools"]
    assert {"tool_call_id", "role", "content"} in [set(m) for m in example["messages"]]


def test_native_completions_are_the_actions() -> None:
    records, _ = grown("tool_calling", TOOLS)
    record = next(record for record in records if record["solved"])
    said = [
        message for node in record["nodes"] if node["golden"] for message in node["messages"]
        if message["role"] == "assistant"
    ]  # fmt: skip
    calls = [m["call"] for m in said if "call" in m]
    words = [m["raw"] for m in said if "call" not in m]
    answers = [row["completion"][0] for row in make_rows([record], POLICY, TOOLS).sft]
    made = [a["tool_calls"][0]["function"] for a in answers if "tool_calls" in a]
    assert made == calls != []
    assert [a["content"] for a in answers if "tool_calls" not in a] == words


# The options.


def saved(folder: Path, template: str) -> str:
    """Save a tokenizer where a model's would be."""
    tokenizer(template).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def test_the_models_own_format_is_taken_where_there_is_one(tmp_path: Path) -> None:
    native = saved(tmp_path / "native", HERMES)
    plain = saved(tmp_path / "plain", PLAIN)
    alternating = saved(tmp_path / "alternating", ALTERNATING)
    text = system_prompt(WORLD.policy, WORLD.tools), ()
    own = WORLD.policy, WORLD.tools
    assert AgentOptions(model=native).shown(WORLD) == own
    assert AgentOptions(model=alternating).shown(WORLD) == text
    assert AgentOptions(model=alternating, tool_format="native").shown(WORLD) == own
    assert AgentOptions(model=native, tool_format="text").shown(WORLD) == text
    assert AgentOptions(model=native, constrain=True).shown(WORLD) == text
    assert AgentOptions(model=native, agent="expert").shown(WORLD) == text
    assert AgentOptions(model=plain).shown(WORLD) == text
    react_prompt = react.system_prompt(WORLD.policy, WORLD.tools)
    assert AgentOptions(model=native, agent="react").shown(WORLD) == (react_prompt, ())
    with pytest.raises(UsageError, match="take --tool-format text"):
        AgentOptions(model=plain, tool_format="native").shown(WORLD)
    for options in ({"constrain": True}, {"agent": "act"}):
        with pytest.raises(UsageError, match="plain text: leave --tool-format native out"):
            AgentOptions(model=native, tool_format="native", **options).shown(WORLD)


def test_hosted_models_are_called_in_the_protocols_format() -> None:
    own = WORLD.policy, WORLD.tools
    text = system_prompt(WORLD.policy, WORLD.tools), ()
    local = "http://localhost:8000/v1"
    assert AgentOptions(backend="openai").shown(WORLD) == own
    assert AgentOptions(backend="litellm").shown(WORLD) == own
    assert AgentOptions(backend="openai", base_url=local).shown(WORLD) == text
    forced = AgentOptions(backend="openai", base_url=local, tool_format="native")
    assert forced.shown(WORLD) == own


@pytest.mark.parametrize("way", WAYS)
def test_options_make_the_agent(way: str) -> None:
    texts = {
        "tool_calling": "Hello!",
        "act": '{"name": "respond", "arguments": {"content": "Hello!"}}',
        "react": 'Thought: Greet.\nAction: {"name": "respond", "arguments": {"content": "Hello!"}}',
    }
    asked: list[Sampling] = []

    def write(prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        asked.append(sampling)
        return texts[way]

    view = [Message("user", "Hi.")]
    for constrain in (False, True):
        options = AgentOptions(agent=way, tool_format="text", constrain=constrain)  # type: ignore[arg-type]
        if way != "tool_calling":
            options = AgentOptions(agent=way, constrain=constrain)  # type: ignore[arg-type]
        agent = options.with_model(CannedBackend(write), WORLD)(WORLD.tasks("train")[0])
        message = agent.act(view, seed=1)
        assert (message.content, message.raw) == ("Hello!", texts[way])
        assert agent.prompt(view)[0]["content"] == WAYS[way].system_prompt(POLICY, TOOLS)
    assert [s.grammar for s in asked] == [None, WAYS[way].grammar(TOOLS)]


# The page.


def test_the_prompts_on_the_page_are_those_of_the_code() -> None:
    page = DOCS.read_text("utf-8")
    for way in WAYS.values():
        assert f"```\n{way.system_prompt('{policy}', TOOLS[:2])}\n```" in page


# Grammars.

TREE = ToolSpec(
    "plan-trip",
    "Plan.",
    {
        "legs": {
            "type": "array",
            "items": {"type": "object", "properties": {"to": {"enum": ["Rome", 'Bo"l', 5]}}},
        },
        "cabins": {"type": "array"},
        "price": {"type": "number"},
        "people": {"type": "integer"},
        "insured": {"type": "boolean"},
        "extra": {"type": ["string", "null"]},
        "more": {"type": "object"},
    },
)


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    tokens = tokenizer(PLAIN)
    return Grammars(tokens, len(tokens), {tokens.eos_token_id})


def allows(grammars: Grammars, grammar: str, text: str) -> bool:
    """Whether a text, and its end after it, keeps to a grammar."""
    matcher = grammars.matcher(grammar)
    return matcher.accept_string(text) and matcher.accept_token(0)


ALLOWED = [
    WRITTEN,
    '{"name":"search_hotel","arguments":{}}',
    '{"name": "book_hotel", "arguments": {"people": "two", "name": "a \\"b\\" \\u00e9 é"}}',
    '{"name": "plan-trip", "arguments": {"legs": [{"to": "Rome"}, {"to": "Bo\\"l"}, {}], '
    '"cabins": [1, [null]], "price": -1.5, "people": 3, "insured": true, "extra": null, '
    '"more": {"a": {"b": []}}}}',
]
FORBIDDEN = [
    '{"name": "search_hotels", "arguments": {}}',
    '{"name": "search_hotel", "arguments": {"area": "nord"}}',
    '{"name": "search_hotel", "arguments": {"region": "north"}}',
    '{"name": "book_hotel", "arguments": {"people": 2}}',
    '{"name": "plan-trip", "arguments": {"people": 3.5}}',
    f'{{"name": "plan-trip", "arguments": {{"price": {"9" * 400}.5}}}}',  # no parser takes it
    '{"name": "plan-trip", "arguments": {"legs": [{"to": "Paris"}]}}',
    '{"name": "search_hotel", "arguments": {}, "id": 1}',
    f"{WRITTEN} {WRITTEN}",
    WRITTEN[:-1],
    "{}",
    "",
]


def walked(grammars: Grammars, grammar: str, luck: Luck) -> str | None:
    """Return a text that a grammar accepts, byte by byte; None if it would be long."""
    tokens = tokenizer(PLAIN)
    matcher = grammars.matcher(grammar)
    bits = xgrammar.allocate_token_bitmask(1, len(tokens))
    closing = set(tokens.convert_tokens_to_ids(['"', "}", "]", "Ċ"]))
    blank = set(tokens.convert_tokens_to_ids(["Ġ", "n"]))
    written: list[int] = []
    for _ in range(300):
        matcher.fill_next_token_bitmask(bits)
        flags = np.unpackbits(bits.numpy().view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(flags[: len(tokens)]).tolist()
        for likelier in (closing, blank):
            if (some := [i for i in allowed if i in likelier]) and luck.chance(0.3):
                allowed = some
        token = 0 if allowed[0] == 0 and luck.chance(0.5) else luck.choice(allowed)
        assert matcher.accept_token(token)
        if token == 0:
            return str(tokens.decode(written))
        written.append(token)
    return None


@pytest.mark.parametrize("way", WAYS)
def test_what_a_grammar_accepts_is_read(grammars: Grammars, way: str) -> None:
    """Read as an action: grammar and parser agree."""
    calls = 0
    for number in range(300):
        luck = Luck(number, way)
        grammar = WAYS[way].grammar((*TOOLS[:2], TREE) if luck.chance(0.5) else TOOLS[:1])
        text = walked(grammars, grammar, luck)
        if text is None:
            continue
        message = WAYS[way].read(text)
        assert message.error is None, text
        calls += 1
    assert calls > 150


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ('{"content": "Hi."}', True),
        ('{"content":"\\"Hi.\\" \\n"}', True),
        ('{"content": "é"}', True),
        ('{"content": "a", "content": "b"}', True),
        ("{}", False),
        ('{"content": ""}', False),
        ('{"content": " "}', False),
        ('{"content": "\u3000"}', False),
        ('{"content": "\\n"}', False),
        ('{"content": "\\u0020"}', False),
        ('{"content": "a", "content": ""}', False),
    ],
)
def test_an_agent_that_speaks_says_something(
    grammars: Grammars, arguments: str, allowed: bool
) -> None:
    text = f'{{"name": "respond", "arguments": {arguments}}}'
    assert allows(grammars, act.grammar(TOOLS), text) == allowed
    assert allows(grammars, react.grammar(TOOLS), f"Thought: So.\nAction: {text}") == allowed
    assert (act.read(text).error is None) == allowed


def test_calls_name_what_there_is(grammars: Grammars) -> None:
    texts = [*ALLOWED, *FORBIDDEN]
    found = [allows(grammars, act.grammar((*TOOLS, TREE)), text) for text in texts]
    assert found == [text in ALLOWED for text in texts]
    found = [allows(grammars, tool_calling.grammar((*TOOLS, TREE)), text) for text in texts]
    assert found == [text in ALLOWED for text in texts]


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("Hello! {It} is\n\n{here}.", True),
        ("[", True),
        (" {", False),
        ("\n{", False),
        ("\u00a0{", False),
        ("\u3000{", False),
        (" Hello", False),
    ],
)
def test_words_do_not_begin_like_a_call(grammars: Grammars, text: str, allowed: bool) -> None:
    assert allows(grammars, tool_calling.grammar(TOOLS), text) == allowed
    assert not allows(grammars, act.grammar(TOOLS), text)


def test_a_thought_comes_first(grammars: Grammars) -> None:
    grammar = react.grammar(TOOLS)
    assert allows(grammars, grammar, f"Thought: Well {{x}}.\nAction: {WRITTEN}")
    said = '{"name": "respond", "arguments": {"content": "Hi"}}'
    assert allows(grammars, grammar, f"Thought: Hm.\nAction: {said}")
    assert not allows(grammars, grammar, WRITTEN)
    assert not allows(grammars, grammar, "Thought: Hm.\nAction: Hi")


def test_all_that_tasks_need_is_allowed(grammars: Grammars) -> None:
    world = load_builtin(CityOptions())
    grammar = tool_calling.grammar(world.tools)
    goals = [goal for task in world.tasks("val")[:200] for goal in task.goals]
    asked = [{k: v for k, v in goal.arguments.items() if v not in EMPTY} for goal in goals]
    pairs = zip(goals, asked, strict=True)
    calls = {format_call(ToolCall(goal.name, arguments)) for goal, arguments in pairs}
    assert [call for call in calls if not allows(grammars, grammar, call)] == []


def test_a_model_keeps_to_a_grammar() -> None:
    """One of random weights, beside calls that are free, and each as if it were alone."""
    torch.manual_seed(0)
    tokens = tokenizer(PLAIN)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens) + 6,  # weights are often padded
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval().double()
    short = ToolSpec("a", "", {"b": {"enum": ["x", "yy"]}})
    grammar = tool_calling.grammar([short]).replace("call | speech", "call")
    prompt: list[ChatMessage] = [{"role": "user", "content": "Go."}]
    samplings = [
        Sampling(temperature, 90, seed, grammar if seed % 2 else None)
        for temperature in (0.0, 1.0, 2.0)
        for seed in range(6)
    ]
    with TransformersBackend(model, tokens) as backend, ThreadPoolExecutor(18) as pool:
        together = list(pool.map(lambda how: backend.complete(prompt, how), samplings))
        alone = [backend.complete(prompt, how) for how in samplings]
    assert [c.text for c in together] == [c.text for c in alone]
    ended = 0
    for how, completion in zip(samplings, together, strict=True):
        call = parse_action(completion.text).call
        assert completion.logprob is not None and completion.logprob > -float("inf")
        if how.grammar is None:
            assert call is None
        elif completion.finish == "stop":
            ended += 1
            assert call is not None and call.name == "a" and set(call.arguments) <= {"b"}
            assert set(call.arguments.values()) <= {"x", "yy"}
    assert ended >= 3
