"""The in-process backend, with a tiny random model: same text as plain generation, less work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from random import Random
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from agents.backends import transformers as transformers_backend
from agents.backends.prefix_store import KeyValues, PrefixStore
from agents.backends.transformers import TransformersBackend
from agents.base import BackendError, ChatMessage, Completion, Sampling
from benchmarks.__main__ import main as benchmark
from toolwoz_gym.types import Usage, UsageError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*texts: str) -> list[ChatMessage]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


PROMPTS = [
    chat("a"),
    chat("Where can I eat?"),
    chat("Where can I eat?", "In the north.", "And sleep?"),
    chat("x" * 150),
    chat("Where can I eat? Something cheap, please"),
]


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    """One token per byte, and the two of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(["<|im_start|>", "<|im_end|>", *alphabet])}
    bare = Tokenizer(models.BPE(vocabulary, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


@pytest.fixture
def model(tokenizer: transformers.PreTrainedTokenizerBase) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    # In single precision, one token in ten thousand or so hangs on how the sums were grouped.
    return transformers.LlamaForCausalLM(config).eval().double()


@pytest.fixture
def backend(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> Iterator[TransformersBackend]:
    with TransformersBackend(model, tokenizer) as backend:
        yield backend


def ask(
    backend: TransformersBackend, requests: Sequence[tuple[list[ChatMessage], Sampling]]
) -> list[Completion]:
    """Make all requests at the same moment."""
    start = Barrier(len(requests))

    def one(request: tuple[list[ChatMessage], Sampling]) -> Completion:
        start.wait()
        return backend.complete(*request)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


def length(tokenizer: transformers.PreTrainedTokenizerBase, prompt: list[ChatMessage]) -> int:
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))


def write_letters(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    """Make it write nothing but letters, so that a text has the tokens that were written."""
    letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    others = [i for i in range(len(tokenizer)) if i not in letters]
    with torch.no_grad():
        model.lm_head.weight[others] = 0


def generated(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompt: list[ChatMessage],
    n: int,
) -> list[int]:
    """What the library's own greedy generation writes."""
    inputs = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(
        **inputs, do_sample=False, max_new_tokens=n, pad_token_id=tokenizer.eos_token_id
    )
    written: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return written


def test_greedy_text_is_that_of_generate_alone_and_in_company(
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    greedy = Sampling(temperature=0.0, max_tokens=24)
    expected = [generated(model, tokenizer, prompt, 24) for prompt in PROMPTS]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert len(set(texts)) > 2
    assert [backend.complete(prompt, greedy).text for prompt in PROMPTS] == texts
    with TransformersBackend(model, tokenizer) as fresh:
        answers = ask(fresh, [(prompt, greedy) for prompt in PROMPTS])
    assert [answer.text for answer in answers] == texts
    usages = [
        Usage(length(tokenizer, p), len(ids)) for p, ids in zip(PROMPTS, expected, strict=True)
    ]
    assert [answer.usage for answer in answers] == usages


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        (transformers.Qwen3Config, {"head_dim": 16, "num_key_value_heads": 2}),
        (transformers.GPTNeoXConfig, {"rotary_pct": 0.25}),
        (transformers.GPT2Config, {}),
        (transformers.Phi3Config, {"num_key_value_heads": 1, "pad_token_id": None}),
    ],
)
def test_other_architectures_write_what_generate_writes(
    architecture: type[transformers.PreTrainedConfig],
    more: dict[str, object],
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    torch.manual_seed(0)
    config = architecture(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().double()
    expected = [generated(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    with TransformersBackend(model, tokenizer) as backend:
        answers = ask(backend, [(prompt, Sampling(0.0, max_tokens=12)) for prompt in PROMPTS])
    assert [answer.text for answer in answers] == [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in expected
    ]
    # The backend does not spoil the model for others.
    assert [generated(model, tokenizer, prompt, 12) for prompt in PROMPTS] == expected


def test_a_call_joins_while_another_writes_and_leaves_before_it(
    backend: TransformersBackend, model: transformers.PreTrainedModel
) -> None:
    long = PROMPTS[1], Sampling(max_tokens=400, seed=1)
    short = [(prompt, Sampling(max_tokens=5, seed=2)) for prompt in PROMPTS]
    alone = [backend.complete(*request) for request in (long, *short)]
    steps, written = backend.stats.steps, backend.stats.completion_tokens
    with ThreadPoolExecutor(1) as pool:
        late: list[Completion] = []
        # Waits for the others, but never for ever: they have the whole of its text to come.
        hook = model.register_forward_pre_hook(lambda *_: late or time.sleep(0.01))
        writing = pool.submit(backend.complete, *long)
        while backend.stats.steps == steps:
            time.sleep(0.001)
        late += ask(backend, short)
        assert not writing.done()
        hook.remove()
        assert [writing.result(), *late] == alone
    # They were written in the long one's steps.
    assert backend.stats.steps - steps == alone[0].usage.completion
    tokens = sum(answer.usage.completion for answer in alone)
    assert backend.stats.completion_tokens - written == tokens


def test_texts_do_not_depend_on_the_coming_and_going(
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups form, grow, use columns again and dissolve; nobody's text shows it."""
    luck = Random(0)
    openings = ["Where can I eat? " * n for n in (1, 3, 8)]
    requests = [
        (
            chat(luck.choice(openings), luck.choice(["Yes.", "No."]), "x" * luck.randrange(9)),
            Sampling(max_tokens=luck.randrange(1, 30), seed=seed),
        )
        for seed in range(48)
    ]
    alone = [backend.complete(*request) for request in requests]
    monkeypatch.setattr(transformers_backend, "_READ_AT_ONCE", 64)
    with TransformersBackend(model, tokenizer, max_batch=5) as busy:
        assert ask(busy, requests) == alone
        assert 1 < busy.stats.occupancy <= 5
        assert busy.stats.completion_tokens == backend.stats.completion_tokens
        assert busy.stats.tokens_per_second > 0


def test_samples_do_not_depend_on_the_company(
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    requests = [
        (prompt, Sampling(temperature, max_tokens=7 + 5 * seed, seed=seed))
        for prompt in PROMPTS
        for temperature, seed in ((0.7, 1), (1.0, 2), (1.0, 3))
    ]
    alone = [backend.complete(*request) for request in requests]
    with TransformersBackend(model, tokenizer, max_batch=8) as other:
        assert ask(other, requests[::-1]) == alone[::-1]
        assert ask(other, requests) == alone
    assert len({answer.text for answer in alone}) > len(PROMPTS)


def test_equal_seeds_agree_and_others_differ(backend: TransformersBackend) -> None:
    answers = ask(backend, [(PROMPTS[1], Sampling(seed=i // 2)) for i in range(8)])
    texts = [answer.text for answer in answers]
    assert texts[::2] == texts[1::2]
    assert len(set(texts)) == 4


def test_drawn_tokens_follow_the_softmax(
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    inputs = tokenizer.apply_chat_template(
        PROMPTS[0], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
    likeliest = tokenizer.decode([int(logits.argmax())])
    for temperature in (0.5, 1.0):
        chance = float((logits / temperature).softmax(-1).max())
        draws = [
            backend.complete(PROMPTS[0], Sampling(temperature, max_tokens=1, seed=seed)).text
            for seed in range(60)
        ]
        spread = (chance * (1 - chance) / len(draws)) ** 0.5
        assert draws.count(likeliest) / len(draws) == pytest.approx(chance, abs=3 * spread)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_probability_is_that_of_a_plain_forward_pass(
    temperature: float,
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Not every sequence of these tokens is text, so the tokens' numbers are read instead.
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: " ".join(map(str, ids)))
    limits = (1, 10, 20)
    requests = [(p, Sampling(temperature, n, seed=n)) for p in PROMPTS for n in limits]
    for (prompt, _), answer in zip(requests, ask(backend, requests), strict=True):
        before = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False
        )
        written = [int(token) for token in answer.text.split()]
        if answer.finish == "stop":
            written.append(tokenizer.eos_token_id)
        with torch.inference_mode():
            logits = model(torch.tensor([before + written])).logits[0, len(before) - 1 : -1]
        chances = (logits / temperature).log_softmax(-1)[range(len(written)), written]
        assert answer.logprob == pytest.approx(float(chances.sum()), rel=1e-5)


def test_what_is_taken_for_sure_has_probability_one(backend: TransformersBackend) -> None:
    answer = backend.complete(PROMPTS[1], Sampling(temperature=0.0, max_tokens=8))
    assert answer.logprob == pytest.approx(0.0, abs=1e-6)


def test_a_shared_prefix_is_computed_once(
    backend: TransformersBackend, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    first = chat("y" * 200)
    answers = ask(backend, [(first, Sampling(max_tokens=8, seed=i)) for i in range(8)])
    tokens = length(tokenizer, first)
    assert backend.stats.calls == 8
    assert backend.stats.prompt_tokens == 8 * tokens
    assert backend.stats.completion_tokens == sum(a.usage.completion for a in answers)
    # The last token of a prompt is each branch's own.
    assert backend.stats.computed_tokens == tokens + 7

    # The prompts of the next turn begin with the first prompt, and differ from there on.
    seconds = [[*first, {"role": "assistant", "content": f"{i} is good"}] for i in range(8)]
    ask(backend, [(prompt, Sampling(max_tokens=8)) for prompt in seconds])
    anew = sum(length(tokenizer, prompt) - tokens for prompt in seconds)
    assert backend.stats.computed_tokens <= tokens + 7 + anew


def test_a_completion_is_not_computed_again_as_part_of_the_next_prompt(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    write_letters(model, tokenizer)
    greedy = Sampling(temperature=0.0, max_tokens=20)
    first = chat("Where can I eat?")
    with TransformersBackend(model, tokenizer) as backend:
        answer = backend.complete(first, greedy)
        assert answer.text.isalpha() and len(answer.text) == 20
        before = backend.stats.computed_tokens
        second = chat("Where can I eat?", answer.text, "And sleep?")
        again = backend.complete(second, greedy)
        computed = backend.stats.computed_tokens - before
    # The last token that was written has not been read yet.
    assert computed == length(tokenizer, second) - length(tokenizer, first) - 19
    with TransformersBackend(model, tokenizer) as fresh:
        assert fresh.complete(second, greedy) == again


def test_reused_prefixes_do_not_change_the_text(
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    dialogue = chat("Where can I eat?", "In the north, at the Old Mill.", "When does it open?")
    turns = [dialogue[:1], dialogue, [*dialogue[:2], *chat("Book it")]]
    used = [backend.complete(turn, Sampling(seed=5)).text for turn in turns]
    fresh = []
    for turn in turns:
        with TransformersBackend(model, tokenizer) as new:
            fresh.append(new.complete(turn, Sampling(seed=5)).text)
    assert used == fresh
    total = sum(length(tokenizer, turn) for turn in turns)
    assert backend.stats.computed_tokens < backend.stats.prompt_tokens == total


def test_a_small_store_only_costs_time(
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    requests = [(prompt, Sampling(max_tokens=12, seed=9)) for prompt in PROMPTS]
    room = max(length(tokenizer, prompt) for prompt in PROMPTS) + 12
    a_token = 2 * 2 * 2 * 8 * 8  # layers, keys and values, heads, head size, bytes
    with TransformersBackend(model, tokenizer, cache_bytes=room * a_token) as small:
        assert small.context == room
        assert ask(small, requests) == ask(backend, requests)
        assert ask(small, requests[::-1]) == ask(backend, requests)[::-1]
        assert small.stats.computed_tokens > backend.stats.computed_tokens


def test_how_completions_end(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    prompt = chat("Where can I eat?")
    tokens = length(tokenizer, prompt)
    greedy = Sampling(temperature=0.0, max_tokens=9)
    written = generated(model, tokenizer, prompt, 9)
    with TransformersBackend(model, tokenizer) as backend:
        cut = backend.complete(prompt, greedy)
        assert (cut.finish, cut.usage) == ("length", Usage(tokens, 9))
        full = backend.complete(chat("z" * 600), greedy)
        assert full == Completion("", Usage(), "context")
        filler = chat("z" * (512 - length(tokenizer, chat("")) - 3))
        last = backend.complete(filler, greedy)
        assert (last.finish, last.usage) == ("length", Usage(509, 3))

    model.generation_config.eos_token_id = [0, written[4]]
    with TransformersBackend(model, tokenizer) as backend:
        ended = backend.complete(prompt, greedy)
    end = written.index(written[4])
    assert ended.finish == "stop"
    assert ended.text == tokenizer.decode(written[:end], skip_special_tokens=True)
    assert ended.usage == Usage(tokens, end + 1)


def test_an_error_reaches_every_caller_and_the_next_batch_works(
    backend: TransformersBackend,
    model: transformers.PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("out of memory")

    def error_of(prompt: list[ChatMessage]) -> BackendError:
        with pytest.raises(BackendError, match="out of memory") as raised:
            backend.complete(prompt, Sampling(max_tokens=4))
        return raised.value

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(PROMPTS)) as pool:
        patch.setattr(model, "forward", fail)
        errors = list(pool.map(error_of, PROMPTS))
    assert all(isinstance(error.__cause__, RuntimeError) for error in errors)
    assert backend.complete(PROMPTS[0], Sampling(max_tokens=4)).usage.completion > 0


@pytest.mark.parametrize("where", ["seat", "keep"])
def test_no_caller_waits_for_a_worker_that_failed_between_two_calls(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    group, allocations = transformers_backend._Group, 0
    kept = TransformersBackend._keep

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    def keep(self: TransformersBackend, *arguments: object) -> None:
        nonlocal allocations
        allocations += 1
        if allocations == 2:
            raise torch.OutOfMemoryError("out of memory")
        kept(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        if where == "seat":
            patch.setattr(group, "_make_room", no_room)
        else:
            patch.setattr(TransformersBackend, "_keep", keep)
        with backend._lock:  # until all have come
            calls = [
                pool.submit(backend.complete, PROMPTS[0], Sampling(0.0, 3, seed))
                for seed in range(4)
            ]
            time.sleep(0.2)
        for call in calls:
            error = call.exception(timeout=60)
            assert error is None or isinstance(error, BackendError)
    assert any(call.exception() for call in calls)
    assert backend.complete(PROMPTS[0], Sampling(max_tokens=4)).usage.completion


def test_a_closed_backend_refuses(backend: TransformersBackend) -> None:
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.complete(PROMPTS[0], Sampling())


TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
OTHERS: dict[str, tuple[type[transformers.PreTrainedConfig], dict[str, object]]] = {
    "windows": (transformers.MistralConfig, {"sliding_window": 16}),
    "some windows": (
        transformers.Gemma3TextConfig,
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "windows and sinks": (
        transformers.GptOssConfig,
        {"head_dim": 8, "sliding_window": 16, "num_local_experts": 4, **EXPERTS},
    ),
    "recurrent": (transformers.MambaConfig, {"state_size": 8}),
    "convolutions": (
        transformers.Lfm2Config,
        {"block_multiple_of": 8, "layer_types": ["conv", "full_attention"]},
    ),
    "linear attention": (
        transformers.Qwen3NextConfig,
        {
            **{"head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
            **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
            **{"num_experts": 4, "layer_types": ["linear_attention", "full_attention"]},
            **LINEAR,
            **EXPERTS,
        },
    ),
    "attention of its own": (transformers.GPTJConfig, {"n_positions": 512, "rotary_dim": 4}),
    "looks into its keys": (transformers.DiffLlamaConfig, {}),
}


def other_model(kind: str, tokenizer: transformers.PreTrainedTokenizerBase) -> Any:
    """A tiny model that cannot be laid out as columns."""
    torch.manual_seed(0)
    architecture, more = OTHERS[kind]
    config = architecture(**{"vocab_size": len(tokenizer), **TINY, **more})
    return transformers.AutoModelForCausalLM.from_config(config).eval().double()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_layers_write_what_generate_writes(
    kind: str,
    tokenizer: transformers.PreTrainedTokenizerBase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = other_model(kind, tokenizer)
    expected = []
    for prompt in PROMPTS:
        written = generated(model, tokenizer, prompt, 12)
        end = [*written, tokenizer.eos_token_id].index(tokenizer.eos_token_id)
        expected.append(tokenizer.decode(written[:end], skip_special_tokens=True))
    samples = [(PROMPTS[n % 3], Sampling(0.8, max_tokens=4 + n, seed=n // 2)) for n in range(8)]
    with TransformersBackend(model, tokenizer) as backend:
        note = next(line for line in caplog.messages if line.startswith("layers of"))
        answers = ask(backend, [(prompt, Sampling(0.0, max_tokens=12)) for prompt in PROMPTS])
        alone = [backend.complete(*sample) for sample in samples]
        assert ask(backend, samples) == alone, "what is random does not depend on company"
    assert [answer.text for answer in answers] == expected
    assert len(set(expected)) > 1
    assert note.startswith(f"layers of {model.config.model_type} models") and "\n" not in note
    assert backend.stats.calls == len(PROMPTS) + 2 * len(samples)
    assert backend.stats.steps < backend.stats.completion_tokens, "equal lengths go together"


@pytest.fixture
def windowed(tokenizer: transformers.PreTrainedTokenizerBase) -> Any:
    return other_model("windows", tokenizer)


def test_how_completions_of_other_layers_end(
    windowed: Any, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    tokens = length(tokenizer, PROMPTS[1])
    greedy = Sampling(temperature=0.0, max_tokens=9)
    written = generated(windowed, tokenizer, PROMPTS[1], 9)
    # What the checkpoint recommends is not asked for; and it stays as it is.
    windowed.generation_config.repetition_penalty = 5.0
    with TransformersBackend(windowed, tokenizer) as backend:
        cut = backend.complete(PROMPTS[1], greedy)
        assert (cut.finish, cut.usage, cut.logprob) == ("length", Usage(tokens, 9), 0.0)
        assert cut.text == tokenizer.decode(written, skip_special_tokens=True)
        assert backend.complete(chat("z" * 600), greedy) == Completion("", Usage(), "context")
        filler = chat("z" * (512 - length(tokenizer, chat("")) - 3))
        last = backend.complete(filler, greedy)
        assert (last.finish, last.usage) == ("length", Usage(509, 3))
    assert windowed.generation_config.repetition_penalty == 5.0
    with pytest.raises(BackendError, match="closed"):
        backend.complete(PROMPTS[0], greedy)

    windowed.generation_config.eos_token_id = [0, written[4]]
    with TransformersBackend(windowed, tokenizer) as backend:
        pair = ask(backend, [(PROMPTS[1], greedy), (PROMPTS[1], Sampling(0.0, max_tokens=2))])
    end = written.index(written[4])
    assert [answer.finish for answer in pair] == ["stop", "length"]
    assert [answer.usage.completion for answer in pair] == [end + 1, 2]
    assert pair[0].text == tokenizer.decode(written[:end], skip_special_tokens=True)


def test_the_probability_of_what_other_layers_write(
    windowed: Any,
    tokenizer: transformers.PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: " ".join(map(str, ids)))
    sampling = Sampling(0.5, 20, seed=3)
    with TransformersBackend(windowed, tokenizer) as backend:
        answer = backend.complete(PROMPTS[1], sampling)
    before = tokenizer.apply_chat_template(
        PROMPTS[1], add_generation_prompt=True, return_dict=False
    )
    written = [int(token) for token in answer.text.split()]
    written += [tokenizer.eos_token_id] * (answer.finish == "stop")
    with torch.inference_mode():
        logits = windowed(torch.tensor([before + written])).logits[0, len(before) - 1 : -1]
    chances = (logits / 0.5).log_softmax(-1)[range(len(written)), written]
    assert answer.logprob == pytest.approx(float(chances.sum()), rel=1e-4)


def test_other_layers_keep_to_a_grammar(
    windowed: Any, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    pytest.importorskip("xgrammar")
    grammar = 'root ::= "yes" | "no"'
    requests = [(PROMPTS[1], Sampling(max_tokens=8, seed=n, grammar=grammar)) for n in range(6)]
    requests.append((PROMPTS[1], Sampling(max_tokens=8, seed=0)))
    with TransformersBackend(windowed, tokenizer) as backend:
        *kept, free = [answer.text for answer in ask(backend, requests)]
    assert set(kept) == {"yes", "no"} and free not in kept


def test_an_error_of_other_layers_reaches_every_caller(
    windowed: Any,
    tokenizer: transformers.PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with TransformersBackend(windowed, tokenizer) as backend:
        with monkeypatch.context() as patch, ThreadPoolExecutor(len(PROMPTS)) as pool:
            patch.setattr(type(windowed), "forward", fail)
            calls = [pool.submit(backend.complete, p, Sampling(max_tokens=4)) for p in PROMPTS]
            errors = [call.exception(timeout=60) for call in calls]
        assert all(isinstance(error, BackendError) for error in errors)
        assert backend.complete(PROMPTS[0], Sampling(max_tokens=4)).usage.completion > 0


def test_other_layers_can_be_exact(
    windowed: Any, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    requests = [(prompt, Sampling(max_tokens=12, seed=n)) for prompt in PROMPTS for n in range(2)]
    with TransformersBackend(windowed.float(), tokenizer, exact=True) as backend:
        alone = [backend.complete(*request) for request in requests]
        assert ask(backend, requests[::-1]) == alone[::-1]


def test_other_layers_are_loaded_by_name(
    tokenizer: transformers.PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the library's fast attention does not know the model's."""
    other_model("windows and sinks", tokenizer).float().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with TransformersBackend.load(str(tmp_path), "cpu", "float32") as backend:
        assert any(line.startswith("layers of gpt_oss models") for line in caplog.messages)
        assert backend.context == 512
        assert backend.complete(PROMPTS[0], Sampling(max_tokens=4)).usage.completion > 0


def test_exact_means_single_precision() -> None:
    with pytest.raises(UsageError, match="--exact computes in float32: leave --dtype out"):
        TransformersBackend.load("bundled", "cpu", "bfloat16", exact=True)


def test_exact_results_do_not_depend_on_company_or_history(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    requests = [
        (prompt, Sampling(max_tokens=12, seed=seed)) for prompt in PROMPTS for seed in range(3)
    ]
    alone = []
    for request in requests:
        with TransformersBackend(model.float(), tokenizer, exact=True) as backend:
            alone += ask(backend, [request])
    with TransformersBackend(model, tokenizer, exact=True) as backend:
        assert ask(backend, requests) == alone
        assert ask(backend, requests[::-1]) == alone[::-1], "the store holds the prompts"
        assert [backend.complete(*request) for request in requests] == alone


def test_a_call_says_what_it_took(backend: TransformersBackend) -> None:
    first, again = (backend.complete(PROMPTS[3], Sampling(max_tokens=2)).usage for _ in range(2))
    assert (first.cached, again.cached) == (0, first.prompt - 1), "the last token is always read"
    assert (first.calls, first.retries, first.usd) == (1, 0, 0.0) and first.seconds > 0


def test_the_generation_benchmark_prints_its_table(
    tokenizer: transformers.PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=8192,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    few = ["--branches", "2", "--dialogues", "2", "--prompt-tokens", "8", "--max-tokens", "3"]
    assert benchmark(["generation", "--model", str(tmp_path), "--dtype", "float32", *few]) == 0
    printed = capsys.readouterr().out
    for load in ("2 branches of a prompt", "2 dialogues"):
        [line] = [line for line in printed.splitlines() if line.startswith(load)]
        own, other, faster = (float(word) for word in line.replace("t/s", "").split()[-3:])
        assert faster == pytest.approx(own / other, rel=0.2, abs=0.1)


def _cells(tokens: Sequence[int]) -> list[float]:
    """A value for each token that depends on all before it, as a model's keys do."""
    ends = range(1, len(tokens) + 1)
    return [float(sha256(bytes(tokens[:end])).digest()[0]) for end in ends]


@given(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=20), st.integers(0, 12))
def test_the_store_gives_back_what_was_put_in(texts: list[list[int]], held: int) -> None:
    sample = KeyValues([(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))])
    store = PrefixStore(sample, capacity=24)
    kept = store.reserve(held, keep=[])
    assert kept is not None
    for text in texts:
        tokens = np.array(text, np.int64)
        known = store.longest(tokens)
        values = torch.tensor(_cells(text)).view(1, 1, -1, 1)
        [(keys, _)] = store.cells.read(known).layers
        assert torch.equal(keys, values[:, :, : len(known)])
        slots = store.reserve(len(text) - len(known), keep=[kept, known])
        assert slots is not None and not set(slots) & (set(known) | set(kept))
        new = values[:, :, len(known) :]
        store.cells.write(slots, KeyValues([(new, new)]))
        store.add(tokens, np.concatenate([known, slots]))
        assert len(store.longest(tokens)) == len(text)
    assert store.reserve(25 - held, keep=[kept]) is None
