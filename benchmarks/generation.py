"""How fast a model in process writes, beside the continuous batching of ``transformers`` itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from agents.base import ChatMessage, Sampling
from agents.tool_calling import system_prompt
from toolwoz_gym import make_toolwoz
from toolwoz_gym.types import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompts: TypeAlias = Sequence[list[ChatMessage]]

FILLER = "The train leaves at nine and the museum in the centre is free. "


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """Time how fast a model in process writes, ours and transformers' own batching in turn."""

    model: str = "bundled"
    """The language model, as harvest and evaluation name it."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """Its arithmetic: auto, float32, bfloat16 or float16."""
    max_tokens: int = 48
    """Longest text, in tokens."""
    branches: int = 8
    """Branches of one dialogue."""
    prompt_tokens: int = 2500
    """Length of that dialogue."""
    dialogues: int = 16
    """Different dialogues, of a quarter of that length."""
    repetitions: int = 1
    """How often each is timed; the median counts."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a load was answered; the time to read its prompts counts."""

    tokens: int
    """Tokens written."""
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def run(options: GenerationOptions) -> None:
    """Measure, and print the table.

    Raises:
        UsageError: An option makes no sense, or there is no such model.
    """
    from agents.models import load_model, load_tokenizer, pick_device, pick_dtype, resolve

    counts = (options.max_tokens, options.branches, options.dialogues, options.repetitions)
    if min(counts) < 1:
        raise UsageError("give at least one token, branch, dialogue and repetition")
    source, device = resolve(options.model), pick_device(options.device)
    tokenizer = load_tokenizer(source)
    model = load_model(source, device=device, dtype=pick_dtype(options.dtype, device))
    quarter = options.prompt_tokens // 4
    loads = {
        f"{options.branches} branches of a prompt": [0] * options.branches,
        f"{options.dialogues} dialogues": list(range(options.dialogues)),
    }
    print(f"{options.model}, {model.dtype}, {device}; at most {options.max_tokens} tokens each\n")
    print(f"{'load':<24}{'prompt':>8}{'ours':>12}{'generate_batch':>18}{'times faster':>14}")
    for (name, numbers), length in zip(loads.items(), (4 * quarter, quarter), strict=True):
        prompts = [prompt_of(tokenizer, number, length) for number in numbers]
        timed: dict[Callable[..., Speed], list[float]] = {ours: [], generate_batch: []}
        for _ in range(options.repetitions):
            for way, rates in timed.items():
                rates.append(way(model, tokenizer, prompts, options.max_tokens).rate)
        own, other = (median(rates) for rates in timed.values())
        tokens = len(_tokens(tokenizer, prompts[0]))
        print(
            f"{name:<24}{tokens:>8,}{own:>8.1f} t/s{other:>14.1f} t/s{own / other:>14.1f}",
            flush=True,
        )


def prompt_of(tokenizer: PreTrainedTokenizerBase, number: int, tokens: int) -> list[ChatMessage]:
    """Return a prompt as harvest makes them, with about so many tokens; each number has its own."""
    domain = make_toolwoz(world="builtin:tasks=20").dialogue.domain
    system = {"role": "system", "content": system_prompt(domain.policy, domain.tools)}
    prompt = [system, {"role": "user", "content": f"I am customer {number}. "}]
    missing = max(0, tokens - len(_tokens(tokenizer, prompt)))
    prompt[1]["content"] += FILLER * round(missing / len(tokenizer(FILLER).input_ids))
    return prompt


def ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, max_tokens: int
) -> Speed:
    """Answer all prompts at once with our backend."""
    from agents.backends.transformers import TransformersBackend

    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    with (
        TransformersBackend(model, tokenizer) as backend,
        ThreadPoolExecutor(len(prompts)) as pool,
    ):
        began = perf_counter()
        answers = list(pool.map(lambda prompt: backend.complete(prompt, sampling), prompts))
        seconds = perf_counter() - began
    return Speed(sum(answer.usage.completion or 0 for answer in answers), seconds)


def generate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, max_tokens: int
) -> Speed:
    """Answer all prompts at once with the library's own continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model.set_attn_implementation("sdpa")
    inputs = [_tokens(tokenizer, prompt) for prompt in prompts]
    config = ContinuousBatchingConfig()
    # Left to itself it takes most of a machine's memory.
    pages = [ceil((len(tokens) + max_tokens) / config.page_size) for tokens in inputs]
    config.num_blocks = sum(pages) + len(pages)
    generation = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    began = perf_counter()
    answers = model.generate_batch(
        inputs, generation_config=generation, continuous_batching_config=config
    )
    seconds = perf_counter() - began
    return Speed(sum(len(answer.generated_tokens) for answer in answers.values()), seconds)


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: list[ChatMessage]) -> list[int]:
    tokens: list[int] = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=False
    )
    return tokens
