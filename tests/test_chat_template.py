"""What chat templates show, and where messages end by them: for agents, customers and training."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_agents import HERMES, NATIVE, PLAIN
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from agents import chat_template
from agents.backends import transformers as transformers_backend
from agents.backends.chat_tokens import ChatTokens
from agents.backends.transformers import TransformersBackend
from agents.base import BackendError, ChatMessage, RunStopped, Sampling
from agents.chat_template import fit, message_ends, unseen
from agents.options import AgentOptions
from toolwoz_gym.records import write_jsonl
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.toolwoz.tools import TOOLS
from toolwoz_gym.types import UsageError
from training.dataset import Row
from training.encode import CHANGED, encode, encode_all
from training.kto import KTOOptions, train_kto
from training.sft import SFTOptions, train_sft

MARKS = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|eos|>", "<|call|>"]
SPACES = "   "
"""A token that was added, as some tokenizers have them, and that is part of words."""

ASKED = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + ASKED
WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A template of words, in which nothing but the user's next turn ends a message."""

CHAT: list[ChatMessage] = [
    {"role": "system", "content": "Help them."},
    {"role": "user", "content": "A hotel."},
    {"role": "assistant", "content": "In which area?"},
    {"role": "user", "content": "North."},
]


def words(
    template: Any, eos: str | None = "<|eos|>", pad: str | None = None
) -> transformers.PreTrainedTokenizerBase:
    """Return a tokenizer whose tokens are bytes and marks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({t: i for i, t in enumerate([*MARKS, *letters])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(MARKS)
    bpe.add_tokens([SPACES])
    named = {key: token for key, token in (("eos_token", eos), ("pad_token", pad)) if token}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=template, **named
    )
    made.name_or_path = "some/model"
    return made


def model(rows: int, eos: int | None = None) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        eos_token_id=eos,
        bos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def saved(folder: Path, template: str, eos: str | None = "<|eos|>", pad: str | None = None) -> str:
    tokenizer = words(template, eos, pad)
    model(len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def shown(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(ChatTokens(tokenizer).encode(CHAT))
    assert isinstance(text, str)
    return text


# Where messages end.


@pytest.mark.parametrize(
    ("template", "tokens", "text"),
    [
        (TURNS, ["<|end|>"], ""),
        (TURNS.replace("<|end|>", f"{SPACES}\n<|end|>\n"), ["<|end|>"], ""),
        (TURNS.replace("<|end|>", " <|end|><|eos|>"), ["<|end|>"], ""),
        # The last message of a chat ends with another than those before it, where a part of a
        # message can end with theirs.
        (
            TURNS.replace("<|end|>", "{{ '<|call|>' if loop.last else '<|end|>' }}"),
            ["<|call|>"],
            "",
        ),
        # Only what is between two messages is there to be seen.
        (TURNS.replace("<|end|>", "{% if not loop.last %}<|end|>{% endif %}"), ["<|end|>"], ""),
        (TURNS.replace("<|end|>", ""), ["<|user|>"], ""),
        (TURNS.replace("<|end|>", "\n"), ["<|user|>"], ""),
        (TURNS.replace("<|end|>", "{{ eos_token }}"), [], ""),
        # Words.
        (WORDS, [], "\nuser:"),
        (WORDS.replace("\n{%", "\n### End\n{%"), [], "\n### End"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", [], ""),
    ],
)
def test_where_a_message_ends(template: str, tokens: list[str], text: str) -> None:
    tokenizer = words(template)
    ends = message_ends(tokenizer)
    assert {*tokenizer.convert_ids_to_tokens(sorted(ends.tokens))} == {*tokens, "<|eos|>"}
    assert ends.text == text
    if "eos_token" not in template:
        assert message_ends(words(template, None)) == replace(
            ends, tokens=ends.tokens - {tokenizer.eos_token_id}
        )


def test_a_call_can_end_with_a_token_of_its_own() -> None:
    def ends(template: str) -> set[str]:
        tokenizer = words(template)
        return {*tokenizer.convert_ids_to_tokens(sorted(message_ends(tokenizer).tokens))}

    calling = "{% if m.tool_calls %}<|assistant|>{{ m.tool_calls | tojson }}<|call|>{% else %}"
    own = TURNS.replace("{% endfor %}", "{% endif %}{% endfor %}").replace(
        "<|{{", calling + "<|{{", 1
    )
    assert ends(own) == {"<|end|>", "<|eos|>", "<|call|>"}
    assert ends(own.replace("<|call|>", "<|call|><|end|>")) == {"<|end|>", "<|eos|>"}


def scripted(monkeypatch: pytest.MonkeyPatch, tokens: Sequence[int]) -> None:
    """Let any model write these tokens."""

    def draw(logits: Any, calls: Any) -> list[tuple[int, float]]:
        return [(tokens[len(call.written)], -0.5) for call in calls]

    monkeypatch.setattr(transformers_backend, "_draw", draw)


@pytest.mark.parametrize(
    ("template", "written", "text"),
    [
        (TURNS, "abc<|end|>more", "abc"),
        (TURNS, "<|end|>", ""),
        (TURNS.replace("<|end|>", ""), "abc<|user|>more", "abc"),
        (WORDS, "user: a\nb\nuser: more", "user: a\nb"),
        (WORDS.replace("\n{%", "é### End\n{%"), "abcé### End", "abc"),
    ],
)
def test_a_message_that_has_ended_goes_on_no_further(
    template: str, written: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = words(template)
    script = tokenizer(written, add_special_tokens=False)["input_ids"]
    scripted(monkeypatch, script)
    with TransformersBackend(model(len(tokenizer)), tokenizer) as backend:
        whole = backend.complete(CHAT, Sampling(max_tokens=len(script)))
        cut = backend.complete(CHAT, Sampling(max_tokens=2)) if len(text) > 2 else None
    assert (whole.text, whole.finish) == (text, "stop")
    assert cut is None or (cut.text, cut.finish) == (text[:2], "length")
    if "more" in written:
        assert whole.usage.completion < len(script)


def test_a_model_whose_messages_nothing_ends_is_refused() -> None:
    bare = words("{% for m in messages %}{{ m.content }}\n{% endfor %}", eos=None)
    with pytest.raises(UsageError, match="^nothing ends the messages of 'some/model'"):
        TransformersBackend(model(len(bare)), bare)
    endless = words(WORDS, eos=None)
    with (
        TransformersBackend(model(len(endless)), endless) as backend,
        pytest.raises(UsageError, match="--constrain wants a model with an end token"),
    ):
        backend.complete(CHAT, Sampling(grammar='root ::= "a"'))


def test_what_is_no_number_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = words(TURNS)
    broken = model(len(tokenizer))
    with TransformersBackend(broken, tokenizer) as backend:
        assert backend.complete(CHAT, Sampling(max_tokens=1)).usage.completion == 1
        for number in (float("nan"), float("inf")):
            with torch.no_grad():
                broken.lm_head.weight[3, :] = number
            for temperature in (0.0, 1.0):
                with pytest.raises(RunStopped, match=r"no number \(NaN\)") as error:
                    backend.complete(CHAT, Sampling(temperature, max_tokens=4))
                assert "\n" not in str(error.value) and isinstance(error.value, BackendError)


# What is shown.


@pytest.mark.parametrize(
    "template", [PLAIN, TURNS, WORDS, *NATIVE.values(), {"default": TURNS, "tool_use": HERMES}]
)
def test_a_template_that_shows_all_stays_as_it_is(
    template: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = words(template)
    fit(tokenizer)
    assert tokenizer.chat_template == template
    assert not caplog.records


DROPS_SYSTEM = TURNS.replace("messages", "messages | rejectattr('role', 'equalto', 'system')")
IN_PARTS = TURNS.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")


@pytest.mark.parametrize(
    ("template", "helped"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + TURNS,
            "the system prompt is put before the user's first message",
        ),
        (DROPS_SYSTEM, "the system prompt is put before the user's first message"),
        (IN_PARTS, "texts are given as lists of parts"),
        (
            IN_PARTS.replace("messages", "messages | rejectattr('role', 'equalto', 'system')"),
            "the system prompt is put before the user's first message, and texts are given as "
            "lists of parts",
        ),
    ],
)
def test_a_template_is_helped_where_that_is_simple(
    template: str, helped: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from agents.models import load_tokenizer, resolve

    folder = saved(tmp_path / "model", f"\n  {template}")
    chat_template._say.cache_clear()
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(resolve(folder))
        load_tokenizer(resolve(folder))
    (said,) = caplog.messages
    assert folder in said and said.endswith(helped)
    text = shown(tokenizer)
    plain = shown(words(f"\n  {TURNS}"))
    folded = plain.replace("<|system|>Help them.<|end|><|user|>", "<|user|>Help them.\n\n")
    assert text == (folded if "system prompt" in helped else plain)
    # A training on it reads and learns the same.
    rows = [Row([*CHAT, {"role": "assistant", "content": "Here."}], 4)]
    (row,), dropped = encode_all(tokenizer, rows, 999)
    assert not dropped and tokenizer.decode(row.ids) == f"{text}Here.<|end|>"
    ((start, end),) = row.spans
    assert tokenizer.decode(row.ids[start:end]) == "Here.<|end|>"


LAST = "<|user|>{{ messages[-1].content }}<|end|>"


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        (LAST, "the system prompt, what the user says, what the assistant says"),
        ("Hello.", "the system prompt, what the user says, what the assistant says"),
        (TURNS.replace("messages", "messages[-6:]"), "the system prompt, what the user says, what"),
        (TURNS.replace("m.content", "m.content[:1000]"), "the system prompt, what the user says"),
        (TURNS.replace("messages", "messages | rejectattr('role', 'equalto', 'user')"),
         "what the user says"),
        (TURNS.replace("messages", "messages | rejectattr('role', 'equalto', 'assistant')"),
         "what the assistant says"),
        ({"default": LAST, "tool_use": HERMES}, "the system prompt"),
    ],
)  # fmt: skip
def test_a_template_that_leaves_messages_out_is_refused(template: Any, missing: str) -> None:
    with pytest.raises(UsageError, match="^the chat template of 'some/model' ") as error:
        fit(words(template))
    assert f"leaves out {missing}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages[0].content.a.b }}", "no attribute 'a'"),
        ("{{ messages[0]['content'][10 ** 9] + 1 }}", "no element 1000000000"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for %}", "Expected"),
        ("{{ raise_exception('first line\n\nand more') }}", "first line and more"),
    ],
)
def test_a_template_with_a_mistake_is_one_line(template: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as error:
        fit(words(template))
    assert "\n" not in str(error.value)


def test_named_templates_need_a_default_one() -> None:
    with pytest.raises(UsageError, match="templates for rag, tool_use, but no default one"):
        fit(words({"rag": TURNS, "tool_use": TURNS}))


def test_a_template_that_does_not_end_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "PATIENCE", 0.05)
    busy = "{% for i in range(20000) %}{% for j in range(400) %}{% endfor %}{% endfor %}"
    for template in (busy + TURNS, f"{{% if messages | length > 9 %}}{busy}{{% endif %}}{TURNS}"):
        with pytest.raises(UsageError, match="has not rendered a chat within 0.05 seconds"):
            fit(words(template))


def test_native_formats_must_show_the_policy_too(tmp_path: Path) -> None:
    world = load_builtin(CityOptions.parse("domains=1,constraints=1,failures=0"))
    silent = HERMES.replace(
        "{% else %}<|im_start|>{{ m.role }}",
        "{% elif m.role == 'system' and tools %}{% else %}<|im_start|>{{ m.role }}",
    )
    for template, native in ((HERMES, True), (silent, False)):
        folder = saved(tmp_path / str(native), template)
        assert AgentOptions(model=folder).resolved_format() == ("native" if native else "text")
    with pytest.raises(UsageError, match="take --tool-format text"):
        AgentOptions(model=folder, tool_format="native").shown(world)
    assert unseen(words(silent), CHAT, tools=True) == ["the system prompt"]


# Training.

NOT_LAST = TURNS.replace(
    "<|end|>", "{% if m.role != 'assistant' or not loop.last %}<|end|>{% endif %}"
)


def answered(text: str, **more: Any) -> Row:
    return Row([*CHAT, {"role": "assistant", "content": text, **more}], 4)


def calling() -> Row:
    call = {
        "id": "call00004",
        "type": "function",
        "function": {"name": "search_hotel", "arguments": {"stars": 4}},
    }
    tools = [chat_template.tool_schema(tool) for tool in TOOLS]
    row = answered("", tool_calls=[call])
    return Row(row.messages, row.start, tools=tools)


@pytest.mark.parametrize(
    ("template", "row", "why"),
    [
        (TURNS, calling(), "leaves out tool calls, the tools, which rows have"),
        (HERMES.replace("{% if tools %}", "{% if no_tools %}"), calling(), "leaves out the tools"),
        (HERMES.replace("elif m.tool_calls", "elif m.other"), calling(), "leaves out tool calls"),
        (DROPS_SYSTEM, answered("Here."), "leaves out the system prompt"),
        (TURNS.replace("<|end|>", "{{ raise_exception('no\nway') }}"), answered("a"), r"\(no way"),
        (TURNS.replace("<|end|>", ""), answered("Here."), "would not learn to stop"),
        (TURNS.replace("<|end|>", "\n"), answered("Here."), "would not learn to stop"),
        (NOT_LAST, answered("a"), "would not learn to stop"),
        (WORDS, answered("Here."), "would not learn to stop"),
    ],
)  # fmt: skip
def test_training_refuses_what_would_be_learned_wrongly(template: str, row: Row, why: str) -> None:
    with pytest.raises(UsageError, match=why) as error:
        encode_all(words(template), [answered("x")] * ("raise" not in template) + [row], 9999)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("template", [*NATIVE.values()], ids=NATIVE)
def test_what_is_learned_has_the_end_at_which_the_model_will_stop(template: str) -> None:
    tokenizer = words(template.replace("<|im_end|>", "<|end|>").replace("<|eot|>", "<|end|>"))
    ends = message_ends(tokenizer)
    for row in (answered("Here."), calling()):
        encoded = encode(tokenizer, row, ends)
        assert not isinstance(encoded, str)
        ((start, end),) = encoded.spans
        text = tokenizer.decode(encoded.ids[start:end])
        assert ends.within(encoded.ids[start:end], text)


def test_words_that_the_template_changes_are_not_learned() -> None:
    template = TURNS.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] | trim }}")
    rows = [answered(" Here.\n"), answered("<think>Hm.</think>Here.")]
    kept, dropped = encode_all(words(template), rows, 999)
    assert [encoded.row for encoded in kept] == rows[:1]
    assert dropped == {CHANGED: 1}


def test_tokenizers_without_an_end_or_a_pad_token_can_be_trained(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", TURNS, eos=None)
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, [{"messages": [*CHAT, {"role": "assistant", "content": "a" * n}]}
                       for n in (1, 2, 3, 4)])  # fmt: skip
    few = {"model": folder, "lora_r": 2, "max_steps": 1, "batch": 4, "dtype": "float32"}
    assert train_sft(SFTOptions(rows=rows, out=tmp_path / "sft", **few))["messages"] == 8
    write_jsonl(
        tmp_path / "kto.jsonl",
        [{"prompt": CHAT, "completion": [{"role": "assistant", "content": "a" * n}],
          "label": n > 2} for n in (1, 2, 3, 4)],
    )  # fmt: skip
    record = train_kto(KTOOptions(run=tmp_path, **few))
    assert (record["good"], record["bad"]) == (2, 2)
    assert json.loads((tmp_path / "adapter" / "training.json").read_text()) == record
