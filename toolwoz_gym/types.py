"""The nouns that every part of the suite speaks in.

All of them are immutable values. The mappings inside (call arguments, parameter schemas) are plain
dictionaries, so that everything pickles and prints; nobody writes to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]

Outcome: TypeAlias = Literal["success", "failure", "truncated", "user_fault"]

Mistake: TypeAlias = Literal[
    "empty",
    "only thoughts",
    "too long",
    "not JSON",
    "nested too deeply",
    "wrong keys",
    "wrong types",
    "no action",
    "call among words",
]
"""Why a message is no action. ``only thoughts``: it ends before it says anything; ``wrong keys``,
``wrong types``: it is a JSON object, but no tool call; ``no action``: it is words where its agent
has to write a call; ``call among words``: a call in a form or a place in which none is read."""

World: TypeAlias = Any
"""What tool calls change during one dialogue: an immutable value, private to its domain."""

N = TypeVar("N", int, float)

END_CONVERSATION = "END_CONVERSATION"
"""The word with which a customer ends the dialogue."""


class ToolError(Exception):
    """A mistake in a tool call: its text is shown to the model as an ``Error: `` observation."""


class AgentFailure(Exception):
    """An agent that cannot go on with a dialogue: the dialogue is cut off there."""


class UserFault(Exception):
    """A customer that cannot go on as it should: the episode ends as ``user_fault``."""

    def __init__(self, reason: str, *, kind: str = "other", usage: Usage | None = None) -> None:
        """Say what is wrong.

        Args:
            reason: What the customer did, for people to read.
            kind: In a few words, by which summaries count.
            usage: What a language model spent on it.
        """
        super().__init__(reason)
        self.kind = kind
        self.usage = usage


class UsageError(Exception):
    """A mistake in what a person asked for: shown as one line that says what to do, exit code 2."""


def one_line(said: BaseException | str) -> str:
    """Return what a library's error or a server says, in one line that fits a terminal."""
    if isinstance(said, BaseException):
        said = str(said) or str(said.__cause__ or type(said).__name__)
    line = " ".join(said.split()) or "no reason given"
    shown = "".join(letter if letter.isprintable() else "?" for letter in line[:300])
    return shown if len(line) <= 300 else f"{shown}…"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of one tool."""

    name: str
    """Name of the tool, as in its :class:`ToolSpec`."""
    arguments: Mapping[str, Any]
    """Argument values by parameter name: whatever JSON allows."""

    def __str__(self) -> str:
        """Say it in a line, for people, without the arguments that are empty."""
        given = (f"{name}={value}" for name, value in self.arguments.items() if value != "")
        return f"{self.name}({', '.join(given)})"


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls of a language model read, wrote and took. None: that is not known.

    Two are equal if they read and wrote as much: all else differs from one run to the next.
    """

    prompt: int | None = 0
    """Tokens read, whether computed anew or taken from a cache."""
    completion: int | None = 0
    """Tokens written."""
    cached: int | None = field(default=0, compare=False)
    """Tokens read that were taken from a cache."""
    calls: int = field(default=0, compare=False)
    """Completions that were asked for and came."""
    retries: int = field(default=0, compare=False)
    """How often one was asked for again."""
    seconds: float = field(default=0.0, compare=False)
    """From asking to the answer, waits included. Calls that overlap count each."""
    usd: float | None = field(default=0.0, compare=False)
    """US dollars that a service bills; 0.0 where nobody does, as for a model in process."""

    @property
    def tokens(self) -> int | None:
        """Tokens read and written."""
        return _plus(self.prompt, self.completion)

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of two usages, field by field: what one does not know is unknown."""
        return Usage(
            _plus(self.prompt, other.prompt),
            _plus(self.completion, other.completion),
            _plus(self.cached, other.cached),
            self.calls + other.calls,
            self.retries + other.retries,
            self.seconds + other.seconds,
            _plus(self.usd, other.usd),
        )

    def __str__(self) -> str:
        """Say it in a line, for people."""
        cached = "" if self.cached == 0 else f" ({_known(self.cached)} from a cache)"
        retries = f", {self.retries:,} retries" if self.retries else ""
        cost = "price unknown" if self.usd is None else f"{self.usd:,.4f} US dollars"
        return (
            f"{_known(self.prompt)} tokens read{cached}, {_known(self.completion)} written, "
            f"{self.calls:,} calls{retries}, {self.seconds:,.1f} s in calls, "
            f"{'nothing billed' if self.usd == 0 else cost}"
        )


def _plus(a: N | None, b: N | None) -> N | None:
    return None if a is None or b is None else a + b


def _known(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue."""

    role: Role
    """Who speaks: ``user`` is the customer, ``tool`` the answer to a call or to a malformed one."""
    content: str = ""
    """The words; empty when an assistant message is a tool call."""
    call: ToolCall | None = None
    """The tool call that an assistant message makes, if it makes one."""
    name: str | None = None
    """The tool that answered (``tool`` messages only; None when no tool was reached)."""
    error: str | None = None
    """Why an assistant message is no action at all (``content`` is then what was written); in the
    last message of an episode that ends as ``user_fault``, the kind of fault."""
    mistake: Mistake | None = None
    """Of which kind the ``error`` of an assistant message is."""
    raw: str | None = None
    """What the policy wrote: what training trains on. In a model's own format of tool calls, it is
    the action alone (docs/agents.md). None: just the action."""
    usage: Usage | None = field(default=None, compare=False)
    """What the message cost, when a language model wrote it."""
    logprob: float | None = field(default=None, compare=False)
    """How likely the language model was to write it (natural logarithm), where that is known."""
    cut_off: bool = field(default=False, compare=False)
    """Whether a limit of its length ended it, and not the language model: it may stop in the middle
    of a sentence."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a tool is called and what it takes."""

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]
    """JSON schema of each parameter, by name."""
    required: tuple[str, ...] = ()
    """Parameters that every call must have."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one customer wants, and what counts as having got it. Domains add their own fields."""

    id: str
    """Unique within the domain's data."""
    split: str
    instruction: str
    """The customer's wishes in English, for customers that are people or language models."""
    goals: tuple[ToolCall, ...]
    """The calls that the agent is expected to make."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Everything that changes during one dialogue, as one immutable value.

    A snapshot is keeping it, a restore is putting it back, a fork is sharing it.
    """

    task: Task
    seed: int
    """Every random choice of the episode is derived from it and from what was said."""
    messages: tuple[Message, ...]
    """The dialogue so far, beginning with the customer's opening."""
    world: World
    steps: int = 0
    """Assistant messages so far."""
    outcome: Outcome | None = None
    """None while the dialogue runs."""
    reward: float = 0.0
    """0.0 while the dialogue runs, then 0.0 or 1.0."""
    truncated: bool = False
    """Whether the step limit ended the dialogue, and not the customer."""
    fingerprint: str = ""
    """The :class:`Domain`'s in which it was begun: what ``world`` means is that domain's to say."""

    @property
    def awaits_user(self) -> bool:
        """Whether the agent has spoken to the customer, and the customer has not answered."""
        last = self.messages[-1]
        return self.outcome is None and last.role == "assistant"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that the score asks for, and what became of it in a dialogue."""

    demand: str
    """What was asked for, in words that a person understands."""
    met: bool
    why: str
    """What met it, or why it was missed."""
    message: int | None = None
    """Index of the message that met it or broke it, where there is one."""


class Domain(Protocol):
    """A world with its tasks, its tools and its way to score. All methods are pure functions."""

    name: str
    policy: str
    """What the agent is told about its job."""
    tools: tuple[ToolSpec, ...]
    fingerprint: str
    """Digest of the data behind the domain: equal fingerprints, equal answers and scores."""
    splits: tuple[str, ...]
    end_marker: str
    """Customers end the dialogue with it."""
    final_tools: frozenset[str]
    """Tools whose call ends the dialogue."""
    max_outputs: int | None
    """Model outputs without a word to the customer after which a search takes its agent for silent;
    None: any number."""

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split, in their order.

        Raises:
            UsageError: There is no such split.
        """
        ...

    def start(self, task: Task) -> World:
        """Return the world as a dialogue about ``task`` finds it."""
        ...

    def call(self, task: Task, world: World, call: ToolCall) -> tuple[World, str]:
        """Answer a tool call.

        Returns:
            The world after the call, and what the agent is shown.

        Raises:
            ToolError: The call is the model's mistake; the world stays as it was.
        """
        ...

    def goals(self, task: Task) -> tuple[ToolCall | str, ...]:
        """Return what counts as progress: calls to make, and what else there is to do, in words."""
        ...

    def goals_met(self, episode: Episode) -> frozenset[int]:
        """Return the indices of the goals that are met. What is met may be undone again."""
        ...

    def is_spoiled(self, episode: Episode) -> bool:
        """Return whether the reward is known to be out of reach, whatever is still done."""
        ...

    def score(self, episode: Episode) -> float:
        """Return the reward, 0.0 or 1.0, of a dialogue that ends here."""
        ...

    def passes_idle(self, task: Task) -> bool:
        """Return whether an agent that does nothing and says nothing solves a task."""
        ...

    def explain(self, episode: Episode) -> tuple[Verdict, ...]:
        """Say what the score of a dialogue that ends here comes from: 1.0 if all of it is met."""
        ...


class UserSimulator(Protocol):
    """A customer: a function of the task and the conversation, without a state of its own."""

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return the customer's next message, a ``user`` message.

        Args:
            task: What the customer wants.
            messages: What customer and agent said to each other so far: ``user`` and ``assistant``
                messages, no tool traffic. Empty at the opening.
            seed: The episode's seed. Draw from ``derive(seed, ..., what was said)``, so that the
                same words meet the same answer in every branch.

        Returns:
            The message. If it ends the dialogue, its ``error`` can be a kind of fault: the episode
            then ends as ``user_fault``, unless it is a success or can no longer be one.

        Raises:
            UserFault: The customer cannot go on.
        """
        ...
