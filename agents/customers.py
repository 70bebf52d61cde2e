"""Customers that a language model plays, over any backend: prompts, and what is read of the answer.

The model sees the dialogue from the customer's side: the agent's words are the ``user`` messages of
its chat, its own the ``assistant`` ones, and the task's instruction is in the system prompt. What
it writes is checked against the contract that every customer keeps to
(:mod:`toolwoz_gym.users.contract`): a dialogue whose customer breaks it ends as ``user_fault``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

from agents.base import Backend, ChatMessage, Sampling
from agents.tool_formats import without_thoughts
from toolwoz_gym.cli import check_choices
from toolwoz_gym.seeding import derive
from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.types import Message, Task, Usage, UsageError, UserFault
from toolwoz_gym.users.contract import FORGIVEN, Breach, breach

Form: TypeAlias = Literal["goal", "guided", "plain", "react", "verify", "reflection"]
"""``goal`` and ``guided`` are ToolWOZ's customers: they know the instruction; guided, also what a
person said who played this customer. The others are τ-bench's: ``plain`` knows the instruction,
``react`` thinks before it speaks, ``verify`` has its words checked and tries again, ``reflection``
has them checked and is told what was wrong."""

FORMS: tuple[Form, ...] = get_args(Form)
TOOLWOZ_FORMS, TAU_FORMS = FORMS[:2], FORMS[2:]

GREETING = "Hello."
"""What the model is shown before the customer's opening: chat templates want the ``user`` first.
Small models say it after the agent, so there is nothing in it that only an agent says."""

CANDIDATES = 3
"""So many answers ``verify`` tries; the last one is said without being checked."""

GOAL = """\
You are a customer who chats with the agent of an information desk. This is what you want:

{instruction}

Rules:
- Write only what you say next: one or two short sentences in words of your own.
- Never write what the agent says, a tool call or JSON. The agent searches and books for you.
- Begin with one thing that you want. Tell the rest bit by bit, when you are asked or when it is \
needed.
- Say nothing that is not written above. What is left open there does not matter to you.
- When something cannot be had, ask for what you would take instead, if that is written above.
- When all is done, or the agent cannot help you, say goodbye and write {marker} after it.
"""

GUIDED = (
    GOAL
    + """
A person has had this conversation before you, with another agent, and said:
{turns}

Keep to these words and to their order as closely as the agent's answers allow. Where they do not \
fit what the agent says, answer it as this person would have done.
"""
)

PLAIN = """\
You are a customer who has written to a company's service desk. This is who you are and what you \
want:

{instruction}

Rules:
- Write only what you say next, in one short message. Never write what the agent says, a tool call \
or JSON.
- Give the agent what it needs for the step at hand, and keep the rest for later.
- Make nothing up. What is not written above, a number for example, you do not remember.
- Put things in words of your own, and talk like the person described above.
- When you have got what you want, write {marker} and nothing else.
"""

REACT = (
    PLAIN
    + """
Write two parts each time. The agent sees only the second:
Thought: what has been settled so far, and what you should say now
Reply: what you say to the agent
"""
)

CHECK = """\
A language model plays a customer. The customer was told:

{instruction}

The conversation so far:
{transcript}

The customer's next message:
{candidate}

Is it a good one? It is what a customer says, not an agent; it fits the conversation; it says \
nothing that the customer was not told; and it has {marker} only if the customer has got what it \
wants. Answer with one word, true or false.
"""

REFLECT = """\
A language model plays a customer. The customer was told:

{instruction}

The conversation so far:
{transcript}

The customer's next message was found wanting:
{candidate}

Say in two parts what is wrong with it and what the customer could say instead. The conversation \
ends with {marker}, once the customer has got what it wants.
Reflection: what is wrong
Response: a better message
"""

ADVICE = "{said}\n\n(A note that only you can see. You could say: {response})"
"""The agent's last words as ``reflection`` shows them the second time."""

_SYSTEM = {"goal": GOAL, "guided": GUIDED, "react": REACT}


@dataclass(frozen=True, slots=True)
class ModelCustomer:
    """Says what a language model writes."""

    backend: Backend
    form: Form
    end_marker: str
    """What it ends the dialogue with: its domain's."""
    temperature: float = 1.0
    """For all that the customer writes; checks take the likeliest answer."""
    max_tokens: int = 128
    """Longest text of one call, thoughts included."""

    def __post_init__(self) -> None:
        check_choices(self)

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return what the customer says next; its ``usage`` is that of all calls behind it.

        Raises:
            UserFault: It breaks the contract, or the dialogue no longer fits the model's context.
                A breach that a success makes good is the ``error`` of the message.
            UsageError: A guided customer has nobody to follow.
            BackendError: The model did not answer.
        """
        moment = derive("customer", seed, *(message.content for message in messages))
        turn = _Turn(self, task, messages, moment)
        written = turn.write(self.prompt(task, messages), "reply", 0)
        if self.form == "verify":
            written = _verified(turn, written)
        elif self.form == "reflection":
            written = _reflected(turn, written)
        words = self.spoken(written)
        kind = self.fault(task, messages, words)
        if kind is not None and kind not in FORGIVEN:
            said = f"the customer {kind}: {written[:200]!r}"
            raise UserFault(said, kind=kind, usage=turn.usage)
        raw = None if words == written else written
        return Message("user", words, error=kind, raw=raw, usage=turn.usage)

    def prompt(self, task: Task, messages: Sequence[Message]) -> list[ChatMessage]:
        """Return exactly what the model is shown before it writes the customer's next message.

        Raises:
            UsageError: A guided customer has nobody to follow.
        """
        system = _SYSTEM.get(self.form, PLAIN).format(
            instruction=task.instruction.strip(),
            marker=self.end_marker,
            turns=recorded_turns(task) if self.form == "guided" else "",
        )
        chat = [_chat("system", system.strip()), _chat("user", GREETING)]
        for message in messages:
            if message.role == "assistant":
                chat.append(_chat("user", message.content))
            elif self.form == "react" and message.raw is not None:
                # Its thoughts are for itself: those that the prompt asks for.
                chat.append(_chat("assistant", without_thoughts(message.raw)))
            else:
                chat.append(_chat("assistant", message.content))
        return chat

    def spoken(self, written: str) -> str:
        """Return what the agent hears of what the model wrote: ``""`` if that is nothing.

        Thoughts and the customer's own name before its words are left out, so is whatever follows
        the end marker, which is spelt as the domain has it.
        """
        words = without_thoughts(written)
        words = _after_thought(words, self.end_marker) if self.form == "react" else words
        words = _OWN_NAME.sub("", words).strip()
        return with_marker(words, self.end_marker)

    def fault(self, task: Task, messages: Sequence[Message], words: str) -> Breach | None:
        """Return how a message of the customer's breaks the contract, if it does."""
        before, marker, _ = words.partition(self.end_marker)
        return breach(task, messages, before, ends=bool(marker))


def with_marker(words: str, marker: str) -> str:
    """Return a message with its end marker as the domain spells it, and nothing after it.

    Args:
        words: The message. Models write ``### Stop ###``, ``END CONVERSATION`` or, on a line of its
            own, ``**stop**``.
        marker: The domain's.
    """
    found = _spellings(marker).search(words)
    return words if found is None else f"{words[: found.start()].rstrip()} {marker}".lstrip()


@lru_cache
def _spellings(marker: str) -> re.Pattern[str]:
    names = re.findall(r"[A-Za-z]+", marker)
    name = "[ _-]?".join(names)
    # One word is the end only between signs or alone: "please stop" is not.
    anywhere = [r"[ _-]".join(names)] if len(names) > 1 else []
    spellings = (
        *(rf"[\[<(*`]*\b{words}\b[\])>*`]*" for words in anywhere),
        rf"[#<\[]+ ?{name}\b ?[#>\]]*",
        rf"^[^\w\n]*{name}[^\w\n]*$",
    )
    return re.compile("|".join(spellings), re.IGNORECASE | re.MULTILINE)


_OWN_NAME = re.compile(r"\A\W{0,3}(?:customer|user)\W{0,3}:\**", re.IGNORECASE)
_REPLY = re.compile(r"^\W{0,3}reply\W{0,3}:\**", re.IGNORECASE | re.MULTILINE)
_RESPONSE = re.compile(r"^\W{0,3}response\W{0,3}:\**", re.IGNORECASE | re.MULTILINE)


def _after_thought(written: str, marker: str) -> str:
    """Return the reply that follows a thought: ``""`` where there is none."""
    if reply := _REPLY.search(written):
        return written[reply.end() :]
    # A marker in the midst of a thought ends nothing.
    return marker if with_marker(written.strip(), marker) == marker else ""


@dataclass(slots=True)
class _Turn:
    """The model calls behind one message of a customer's."""

    customer: ModelCustomer
    task: Task
    messages: Sequence[Message]
    moment: int
    """The seed of what was said."""
    usage: Usage = field(default_factory=Usage)
    """Of all calls so far."""

    def write(
        self, prompt: Sequence[ChatMessage], kind: str, attempt: int, *, greedy: bool = False
    ) -> str:
        """Let the model write.

        Raises:
            UserFault: The prompt does not fit the model's context.
        """
        temperature = 0.0 if greedy else self.customer.temperature
        seed = derive(self.moment, kind, attempt)
        sampling = Sampling(temperature, self.customer.max_tokens, seed)
        completion = self.customer.backend.complete(prompt, sampling)
        self.usage += completion.usage
        if completion.finish == "context":
            raise UserFault(
                "the dialogue no longer fits the context of the customer's model",
                kind="outgrew its context",
                usage=self.usage,
            )
        return completion.text.strip()

    def passes(self, written: str, attempt: int) -> bool:
        """Return whether a message is good: it keeps the contract, and the check says so."""
        words = self.customer.spoken(written)
        if self.customer.fault(self.task, self.messages, words):
            return False
        verdict = self.write(self.ask(CHECK, words), "check", attempt, greedy=True)
        found = re.search(r"\b(?:true|false)\b", without_thoughts(verdict).lower())
        return found is not None and found[0] == "true"

    def ask(self, prompt: str, candidate: str) -> list[ChatMessage]:
        """Return the prompt with which a message is judged."""
        names = {"user": "Customer", "assistant": "Agent"}
        said = [f"{names[message.role]}: {message.content}" for message in self.messages]
        text = prompt.format(
            instruction=self.task.instruction.strip(),
            transcript="\n".join(said) or "(The customer speaks first.)",
            candidate=candidate,
            marker=self.customer.end_marker,
        )
        return [_chat("user", text.strip())]


def _verified(turn: _Turn, written: str) -> str:
    """Return the first answer that passes the check; the last one if none does."""
    prompt = turn.customer.prompt(turn.task, turn.messages)
    for attempt in range(1, CANDIDATES):
        if turn.passes(written, attempt):
            break
        written = turn.write(prompt, "reply", attempt)
    return written


def _reflected(turn: _Turn, written: str) -> str:
    """Return an answer that passes the check; the first one if the second does not either."""
    if turn.passes(written, 1):
        return written
    words = turn.customer.spoken(written)
    reflection = without_thoughts(turn.write(turn.ask(REFLECT, words), "reflection", 1))
    response = _RESPONSE.search(reflection)
    if response is None:
        return written
    prompt = turn.customer.prompt(turn.task, turn.messages)
    said = prompt[-1]["content"]
    advice = ADVICE.format(said=said, response=reflection[response.end() :].strip())
    second = turn.write([*prompt[:-1], _chat("user", advice)], "reply", 1)
    return second if turn.passes(second, 2) else written


def recorded_turns(task: Task) -> str:
    """Return what a person said as the customer of a task, a line a turn.

    Raises:
        UsageError: Nobody has.
    """
    if not isinstance(task, ToolWOZTask) or not task.turns:
        raise UsageError(
            f"nobody was recorded as the customer of task {task.id}: a guided customer needs "
            "world='multiwoz'; take the form goal"
        )
    return "\n".join(f"{n}. {' '.join(said.split())}" for n, said in enumerate(task.turns, 1))


def _chat(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}
