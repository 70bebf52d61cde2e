"""Who plays, agent and customer: the options that harvest and evaluation share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias

from agents import act, react, tool_calling
from agents.adapters import adapter_digest
from agents.backends.canned import ReplayBackend
from agents.backends.journal import Journal, Notebook, Recorded, Recording
from agents.backends.spending import OPENAI, Budget, is_openai
from agents.base import Agent, AgentFactory, Backend
from agents.chat_template import in_time, unseen
from agents.customers import (
    FORMS,
    TAU_FORMS,
    TOOLWOZ_FORMS,
    ModelCustomer,
    recorded_turns,
)
from agents.erring import ErringAgent
from agents.gold import GoldAgent
from agents.models import BUNDLED, BUNDLED_BASE, resolve
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import ToolCallingAgent
from agents.tool_formats import is_native
from toolwoz_gym.cli import check_choices, check_counts
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.env import DialogueEnv
from toolwoz_gym.progress import phase
from toolwoz_gym.records import read_config
from toolwoz_gym.tau_bench.domain import TauBench, TauTask
from toolwoz_gym.types import Domain, Message, Task, ToolSpec, Usage, UsageError
from toolwoz_gym.users import NAMES


def _from_json(option: Field[Any], value: Any) -> Any:
    """Return an option's value as it was before it was written as JSON."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if value is not None and "Path" in str(option.type) else value


def expert(task: Task) -> Agent:
    """Return an agent that solves a task, knowing its goal."""
    return GoldAgent(task) if isinstance(task, TauTask) else ExpertAgent(task)


BackendName: TypeAlias = Literal["transformers", "vllm", "openai", "litellm"]
"""What can run a model."""

SCRIPTS = ("expert", "erring", "random")
"""The agents that no language model plays."""

SERVERS = ("openai", "litellm")
"""The backends whose models somebody else runs, and perhaps bills."""


class _Way(Protocol):
    """A way to play with a language model: a prompt, a parser, and a grammar of what it reads."""

    def system_prompt(self, policy: str, tools: Sequence[ToolSpec]) -> str: ...

    def read(self, text: str) -> Message: ...

    def grammar(self, tools: Sequence[ToolSpec]) -> str: ...


_WAYS: Mapping[str, _Way] = {"tool_calling": tool_calling, "react": react, "act": act}


@cache
def _has_tool_format(model: str, *, silences: bool) -> bool:
    """Return whether a model's chat template shows tool calls in a format that is read here."""
    from agents.models import load_tokenizer

    tokenizer = load_tokenizer(resolve(model))
    render = partial(tokenizer.apply_chat_template, tokenize=False)

    def template(chat: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        return in_time(tokenizer, lambda: str(render(chat, tools=tools)))

    talk = [{"role": role, "content": ""} for role in ("system", "user", "assistant", "user")]
    return is_native(template, silences=silences) and not unseen(tokenizer, talk, tools=True)


INDIFFERENT = frozenset(
    (
        *("device", "base_url", "user_base_url", "concurrency", "max_usd", "max_total_tokens"),
        *("gpu_memory", "run", "trees", "given"),
    )
)
"""Options that do not decide what the records of a run say: another session may change them."""

_OF_A_REPLAY = frozenset(
    ("backend", "model", "run", "tasks", "trees", "episodes_at_once", "engine")
)
"""Options that one who plays a run again can name; all else is as it was recorded."""

SHOWN = "shown"
"""The entry of a run's config.json that says what its model is told beforehand."""


def shown_to_json(system: str, tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """Return what :meth:`AgentOptions.shown` returns as JSON data."""
    return {"system": system, "tools": [asdict(tool) for tool in tools]}


def shown_from_json(data: Mapping[str, Any]) -> tuple[str, tuple[ToolSpec, ...]]:
    """Return what :func:`shown_to_json` has written."""
    tools = [tool | {"required": tuple(tool["required"])} for tool in data["tools"]]
    return data["system"], tuple(ToolSpec(**tool) for tool in tools)


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOptions:
    """Which agent plays, and with what model."""

    given: frozenset[str] = field(default_factory=frozenset, init=False, compare=False, repr=False)
    """Names of the options that the command line gave, be they as unless told or not."""
    agent: Literal["tool_calling", "react", "act", "expert", "erring", "random"] = "tool_calling"
    """tool_calling: a language model that speaks or calls a tool; react: one that plans, then acts;
    act: one that writes an action each time; expert: a script that knows the goal; erring: the same
    with slips; random: a script that does not know it."""
    tool_format: Literal["auto", "native", "text"] = "auto"
    """tool_calling: native, the model's own format of tool calls; text, JSON in plain text; auto,
    the model's own where its chat template has one (of a server, that cannot be seen: text), or a
    hosted service runs the model."""
    constrain: bool = False
    """Let the model call none but the tools that there are, with values that they know (in plain
    text; transformers needs xgrammar, and a server has to know grammars)."""
    model: str = "bundled"
    """The language model: "bundled" (SmolLM2-135M-Instruct, warm-started), "bundled-base" (without
    the warm start), a folder of a model or of an adapter, a .gguf file, or a name on the Hugging
    Face hub."""
    backend: BackendName | Literal["canned"] = "transformers"
    """What runs the model: transformers, in this process; vllm, in vLLM's engine (docs/vllm.md);
    openai, a server that speaks OpenAI's protocol; litellm, any service that LiteLLM knows; canned,
    nothing: the run in the folder that --model names is played again, with its options."""
    base_url: str = OPENAI
    """openai: address of the server. Its key comes from OPENAI_API_KEY."""
    concurrency: int = 16
    """openai, litellm: calls in flight at a time."""
    max_usd: float | None = None
    """openai, litellm: US dollars that the run may spend; then it stops, and can go on later."""
    max_total_tokens: int | None = None
    """openai, litellm: the same for tokens, read and written."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """Its arithmetic: auto, float32, bfloat16 or float16."""
    exact: bool = False
    """transformers, vllm: compute each call as if it were alone, to the last bit (transformers:
    float32 on the CPU; vllm: on CUDA; and somewhat slower): docs/reproducibility.md."""
    gpu_memory: float = 0.9
    """vllm: the part of a GPU's memory that the model and its cache may take."""
    temperature: float = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    max_tokens: int = 96
    """Longest message of the model's, in tokens."""

    def __post_init__(self) -> None:
        check_choices(self)

    @contextmanager
    def open(self, domain: Domain, notebook: Notebook | None = None) -> Iterator[AgentFactory]:
        """Load what the agent needs, and give what makes it.

        Args:
            domain: Where it plays.
            notebook: Where the run's completions are kept; None: nowhere.

        Raises:
            UsageError: There is no such model or device.
        """
        if self.agent == "expert":
            yield expert
        elif self.agent == "erring":
            yield lambda task: ErringAgent(task, domain.tools, expert=expert)
        elif self.agent == "random":
            yield lambda task: RandomAgent(domain.tools)
        else:
            with self.open_recorded(self.open_budget(notebook), notebook) as backend:
                yield self.with_model(backend, domain)

    def with_model(self, backend: Backend, domain: Domain) -> AgentFactory:
        """Return what makes the agent that an open model plays."""
        way = _WAYS[self.agent]
        system, tools = self.shown(domain)
        agent = ToolCallingAgent(
            backend,
            system,
            self.temperature,
            self.max_tokens,
            tools=tools,
            read=way.read,
            grammar=way.grammar(domain.tools) if self.constrain else None,
        )
        return lambda task: agent

    def shown(self, domain: Domain) -> tuple[str, tuple[ToolSpec, ...]]:
        """Return what the agent's model is told beforehand.

        Returns:
            The system prompt, and the tools that the model is shown in its own format. Of scripts,
            what a model would be told that does the same in plain text.

        Raises:
            UsageError: There is no such model, or it has no format of tool calls.
        """
        if self.resolved_format() == "native":
            return domain.policy, domain.tools
        way = _WAYS.get(self.agent, tool_calling)
        return way.system_prompt(domain.policy, domain.tools), ()

    def resolved_format(self) -> Literal["native", "text"]:
        """Return the format of tool calls that is used, never ``auto``.

        Raises:
            UsageError: There is no such model, or it has no format of tool calls.
        """
        return "native" if self._is_native() else "text"

    def _is_native(self) -> bool:
        forced = self.tool_format == "native"
        if forced and (self.agent != "tool_calling" or self.constrain):
            what = "--constrain" if self.constrain else f"the agent {self.agent}"
            raise UsageError(f"{what} works in plain text: leave --tool-format native out")
        if self.agent != "tool_calling" or self.tool_format == "text" or self.constrain:
            return False
        if self.backend == "canned":
            return forced  # as in the recorded run
        if self.backend in SERVERS:
            return forced or self.backend == "litellm" or is_openai(self.base_url)
        native = _has_tool_format(self.model, silences=not forced)
        if forced and not native:
            raise UsageError(
                f"the chat template of {self.model!r} shows no tool calls in a format that is read "
                "here: take --tool-format text"
            )
        return native

    @property
    def needs_model(self) -> bool:
        """Whether a language model plays."""
        return self.agent not in SCRIPTS

    @property
    def is_served(self) -> bool:
        """Whether somebody else runs the model: its name says nothing about files."""
        return self.backend in (*SERVERS, "canned")

    def open_backend(self, budget: Budget | None = None) -> AbstractContextManager[Backend]:
        """Load or reach the language model.

        Args:
            budget: What the run may spend, all its models together; None: this one plays alone.

        Raises:
            UsageError: There is no such model or device, or a limit cannot be kept.
        """
        if self.backend == "canned":
            raise UsageError("canned replays a harvest or an evaluation, on this machine")
        if self.backend == "transformers":
            from agents.backends.transformers import TransformersBackend

            with phase(f"loading {self.model}"):
                return TransformersBackend.load(
                    self.model, self.device, self.dtype, exact=self.exact
                )
        if self.backend == "vllm":
            try:
                from agents.backends.vllm import VLLMBackend
            except ImportError as error:
                raise UsageError(
                    f"vLLM cannot be imported ({error}): docs/vllm.md says how to install it"
                ) from error
            with phase(f"loading {self.model}"):
                return VLLMBackend.load(
                    self.model,
                    self.device,
                    self.dtype,
                    exact=self.exact,
                    gpu_memory=self.gpu_memory,
                )
        from agents.backends.openai import OpenAIBackend

        budget = budget or self.open_budget()
        if self.backend == "litellm":
            return OpenAIBackend.litellm(self.model, concurrency=self.concurrency, budget=budget)
        return OpenAIBackend.connect(
            self.model, self.base_url, concurrency=self.concurrency, budget=budget, logprobs=True
        )

    @contextmanager
    def open_recorded(self, budget: Budget, notebook: Notebook | None) -> Iterator[Backend]:
        """Load or reach the language model, unless it is replayed, and have its words kept.

        Raises:
            UsageError: There is no such model or device, or a limit cannot be kept.
        """
        if notebook is None:
            with self.open_backend(budget) as backend:
                yield backend
        elif notebook.replays is not None:
            replay = ReplayBackend(notebook.replays, self.model)
            yield Recorded(replay, notebook, self.model, billed=False)
        else:
            with self.open_backend(budget) as backend:
                yield Recorded(backend, notebook, self.model, billed=self.backend in SERVERS)

    def open_budget(self, notebook: Notebook | None = None) -> Budget:
        """Return what a run may spend, and what it has spent by its notebook."""
        spent = notebook.spent if notebook else Usage()
        return Budget(max_usd=self.max_usd, max_tokens=self.max_total_tokens, spent=spent)

    def open_journal(self, folder: Path) -> Journal:
        """Open the journal of a run in a folder; with the backend ``canned``, to replay another's.

        Raises:
            UsageError: It cannot be used, or there is nothing to replay.
        """
        replays = Recording.of(Path(self.model)) if self.backend == "canned" else None
        return Journal(folder, replays)

    def as_recorded(self, into: Path) -> Self:
        """Return the options with which the run was made that ``canned`` replays.

        All else is as it was recorded.

        Args:
            into: The folder of the new run.

        Raises:
            UsageError: An option says something else, or has no say in a replay; or there is no
                such run.
        """
        if self.backend != "canned":
            return self
        run = Path(self.model)
        if not (run / "config.json").is_file():
            raise UsageError(
                f"canned replays a recorded run: --model names its folder, and there is none in "
                f"{run}"
            )
        if into.resolve() == run.resolve():
            raise UsageError(f"{run} holds the recording: choose another --run for the replay")
        recorded = read_config(run)["options"]
        kept = ("backend", "user_backend")
        options = [o for o in fields(self) if o.name in recorded and o.name not in kept]
        taken = {option.name: _from_json(option, recorded[option.name]) for option in options}
        for option in options:
            given, value = getattr(self, option.name), taken[option.name]
            named = option.name in self.given or given != option.default
            if option.name != "model" and named and given != value:
                raise UsageError(
                    f"{run} was recorded with {option.name} {value}, not {given}: leave it out"
                )
        for name in sorted(self.given - _OF_A_REPLAY - taken.keys()):
            raise UsageError(f"{name} has no say in a replay: leave it out")
        return replace(self, **taken)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayOptions(AgentOptions):
    """Which agent plays, and with which customer."""

    user: str = "scripted"
    """The customer: scripted, scripted:noise=0.3 (0 to 1) or replay; or one that a language model
    plays: goal or guided for ToolWOZ, plain, react, verify or reflection for TauBench."""
    user_model: str | None = None
    """The customer's language model, named as for --model. Unless told: the agent's."""
    user_backend: BackendName | None = None
    """What runs it. Unless told: what runs the agent's."""
    user_base_url: str | None = None
    """Address of its server. Unless told: that of the agent's."""
    user_temperature: float = 1.0
    """Its sampling temperature."""
    user_max_tokens: int = 128
    """Longest text that it writes at once, thoughts included, in tokens."""

    @property
    def named_user(self) -> str:
        """The customer as ``make_env`` knows it; a stand-in for one that is yet to be loaded."""
        return "scripted" if self.user in FORMS else self.user

    def check_play(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UsageError: One does not.
        """
        check_counts(self, "max_tokens", "user_max_tokens", "concurrency")
        for name in ("temperature", "user_temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be a number from 0 on")
        for name in ("max_usd", "max_total_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be more than 0")
        if not 0 < self.gpu_memory <= 1:
            raise UsageError("gpu_memory must be more than 0, and at most 1")
        if self.user not in FORMS and self.user.partition(":")[0] not in ("scripted", "replay"):
            models = f"{', '.join(FORMS[:-1])} or {FORMS[-1]}"
            raise UsageError(
                f"no customer {self.user!r:.60}: choose {NAMES}; or, played by a model, {models}"
            )
        if self.user not in FORMS and (self.user_model or self.user_backend):
            raise UsageError(
                f"the customer {self.user!r} is no language model: leave its model out, or choose "
                "one that a model plays, --user goal for example"
            )
        backends = (self.backend, self.user_backend)
        if (self.max_usd or self.max_total_tokens) and not any(b in SERVERS for b in backends):
            raise UsageError(
                "limits are for models behind servers, --backend openai or litellm: leave "
                "--max-usd and --max-total-tokens out"
            )
        if self.base_url != OPENAI and "openai" not in backends:
            raise UsageError("--base-url is for --backend openai: add it")
        players = {"--model": self} if self.needs_model else {}
        if self.user in FORMS:
            players["--user-model"] = self.customer_model()
        for option, player in players.items():
            if player.backend in SERVERS and player.model in (BUNDLED, BUNDLED_BASE):
                raise UsageError(f"{player.backend} wants a model's name there: {option} <name>")
        if self.exact and self.needs_model and self.backend in SERVERS:
            raise UsageError("a server's results cannot be made exact: leave --exact out")
        if self.user_base_url and (self.user_backend or self.backend) != "openai":
            raise UsageError("--user-base-url is for --user-backend openai: add it")

    def check_user(self, env: DialogueEnv) -> None:
        """Refuse a customer that does not fit its environment.

        Raises:
            UsageError: It does not.
        """
        if self.user == "replay":
            env.dialogue.user.reply(env.tasks[0], (), seed=0)  # says where nobody was recorded
        if self.user not in FORMS:
            return
        is_tau = isinstance(env.dialogue.domain, TauBench)
        forms = TAU_FORMS if is_tau else TOOLWOZ_FORMS
        if self.user not in forms:
            name = "TauBench" if is_tau else "ToolWOZ"
            raise UsageError(
                f"the customer {self.user!r} is written for another environment: choose "
                f"{', '.join(forms[:-1])} or {forms[-1]} for {name}"
            )
        if self.user == "guided":
            recorded_turns(env.tasks[0])

    def adapters(self) -> dict[str, str]:
        """Return a digest of each adapter that plays: trained anew, it is another one.

        Returns:
            Digests of ``agent_adapter`` and ``user_adapter``, if these have one.

        Raises:
            UsageError: There is no such model.
        """
        players = {"agent_adapter": self} if self.needs_model else {}
        if self.user in FORMS:
            players["user_adapter"] = self.customer_model()
        found = {name: resolve(p.model).adapter for name, p in players.items() if not p.is_served}
        return {name: adapter_digest(adapter) for name, adapter in found.items() if adapter}

    def unused(self) -> frozenset[str]:
        """Return the names of the options of models that do not play."""
        customers = ("user_model", "user_backend", "user_temperature", "user_max_tokens")
        agents = ("tool_format", "constrain", "temperature", "max_tokens")
        shared = ("model", "backend", "dtype", "exact")
        has_customer = self.user in FORMS
        return frozenset(
            (
                *(() if has_customer else customers),
                *(() if self.needs_model else agents),
                *(() if self.needs_model or has_customer else shared),
            )
        )

    def customer_model(self) -> Self:
        """Return the options with the customer's language model in the place of the agent's."""
        return replace(
            self,
            model=self.user_model or self.model,
            backend=self.user_backend or self.backend,
            base_url=self.user_base_url or self.base_url,
        )

    @contextmanager
    def open_players(
        self, dialogue: Dialogue, notebook: Notebook | None = None
    ) -> Iterator[tuple[Dialogue, AgentFactory]]:
        """Load what customer and agent need. A model that plays both is loaded once.

        Args:
            dialogue: The rules of play, with any customer.
            notebook: Where the run's completions are kept; None: nowhere.

        Yields:
            The rules with the right customer, and what makes the agent.

        Raises:
            UsageError: There is no such model or device, or a limit cannot be kept.
        """
        domain, behind = dialogue.domain, self.customer_model()
        with ExitStack() as stack:
            if self.user not in FORMS:
                yield dialogue, stack.enter_context(self.open(domain, notebook))
                return
            budget = self.open_budget(notebook)
            backend = stack.enter_context(behind.open_recorded(budget, notebook))
            customer = ModelCustomer(
                backend,
                self.user,
                domain.end_marker,
                self.user_temperature,
                self.user_max_tokens,
            )
            if not self.needs_model:
                make_agent = stack.enter_context(self.open(domain, notebook))
            elif behind == self:
                make_agent = self.with_model(backend, domain)
            else:
                own = stack.enter_context(self.open_recorded(budget, notebook))
                make_agent = self.with_model(own, domain)
            yield replace(dialogue, user=customer), make_agent
