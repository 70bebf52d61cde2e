"""How fast a model in process writes: beside the continuous batching of ``transformers`` itself, or
in vLLM's engine with and without what it has cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeAlias

from agents.base import Backend, ChatMessage, Sampling
from agents.options import AgentOptions
from agents.tool_calling import system_prompt
from toolwoz_gym import make_toolwoz
from toolwoz_gym.cli import check_choices
from toolwoz_gym.progress import phase
from toolwoz_gym.types import Usage, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompts: TypeAlias = Sequence[list[ChatMessage]]

FILLER = "The train leaves at nine and the museum in the centre is free. "


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """Time how fast a model in process writes: many calls at once, with long prompts."""

    model: str = "bundled"
    """The language model, as harvest and evaluation name it."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """transformers: ours and the library's own batching in turn; vllm: the same calls twice, the
    second time with what they read cached."""
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
    """transformers: how often each is timed; the median counts."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a load was answered; the time to read its prompts counts."""

    tokens: int
    """Tokens written."""
    seconds: float
    cached: int = 0
    """Tokens of the prompts that were in a cache."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def run(options: GenerationOptions) -> None:
    """Measure, and print the table.

    Raises:
        UsageError: An option makes no sense, or there is no such model.
    """
    from agents.models import load_tokenizer, resolve

    counts = (options.max_tokens, options.branches, options.dialogues, options.repetitions)
    if min(counts) < 1:
        raise UsageError("give at least one token, branch, dialogue and repetition")
    tokenizer = load_tokenizer(resolve(options.model))
    quarter = options.prompt_tokens // 4
    loads = {
        f"{options.branches} branches of a prompt": (4 * quarter, [0] * options.branches),
        f"{options.dialogues} dialogues": (quarter, range(1, options.dialogues + 1)),
    }
    prompts = {
        name: [prompt_of(tokenizer, number, length) for number in numbers]
        for name, (length, numbers) in loads.items()
    }
    time = _time_vllm if options.backend == "vllm" else _time_transformers
    time(options, tokenizer, prompts)


def _time_transformers(
    options: GenerationOptions, tokenizer: PreTrainedTokenizerBase, loads: Mapping[str, Prompts]
) -> None:
    """Print how fast ours and the library's own batching answer some loads."""
    from agents.models import load_model, pick_device, pick_dtype, resolve

    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    with phase(f"loading {options.model}"):
        model = load_model(resolve(options.model), device=device, dtype=dtype)
    print(f"{options.model}, {model.dtype}, {device}; at most {options.max_tokens} tokens each\n")
    print(f"{'load':<24}{'prompt':>8}{'ours':>12}{'generate_batch':>18}{'times faster':>14}")
    for name, prompts in loads.items():
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


def _time_vllm(
    options: GenerationOptions, tokenizer: PreTrainedTokenizerBase, loads: Mapping[str, Prompts]
) -> None:
    """Print how fast vLLM answers some loads, each of them twice."""
    engine = AgentOptions(
        model=options.model, backend="vllm", device=options.device, dtype=options.dtype
    )
    with engine.open_backend() as backend:
        print(f"{options.model}, vLLM; at most {options.max_tokens} tokens each\n")
        print(f"{'load':<24}{'prompt':>8}{'first':>20}{'again':>20}{'cached':>16}")
        for name, prompts in loads.items():
            runs = [answer(backend, prompts, options.max_tokens) for _ in range(2)]
            read = [len(_tokens(tokenizer, prompt)) for prompt in prompts]
            times = "".join(f"{r.seconds:>9.1f} s{r.rate:>5.1f} t/s" for r in runs)
            shares = " ".join(f"{r.cached / sum(read):>7.0%}" for r in runs)
            print(f"{name:<24}{read[0]:>8,}{times}{shares:>16}", flush=True)


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

    with TransformersBackend(model, tokenizer) as backend:
        return answer(backend, prompts, max_tokens)


def answer(backend: Backend, prompts: Prompts, max_tokens: int) -> Speed:
    """Answer all prompts at once with a backend."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    with ThreadPoolExecutor(len(prompts)) as pool:
        began = perf_counter()
        answers = list(pool.map(lambda prompt: backend.complete(prompt, sampling), prompts))
        seconds = perf_counter() - began
    usage = sum((answer.usage for answer in answers), Usage())
    return Speed(usage.completion or 0, seconds, usage.cached or 0)


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
