"""What an agent is, and what a language model behind it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeAlias

from toolwoz_gym.types import Message, Task, ToolSpec, Usage

ChatMessage: TypeAlias = dict[str, str]
"""One message of a prompt, as chat templates take it: ``role`` and ``content``."""


class BackendError(Exception):
    """A model could not be reached or did not answer: never the agent's failure."""


class RunStopped(BackendError):
    """No further call of the run can succeed: it ends at once, and what is finished is kept."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one completion is drawn."""

    temperature: float = 1.0
    """0.0 takes the likeliest token each time."""
    max_tokens: int = 128
    """The completion is cut off after so many tokens."""
    seed: int = 0
    """Decides which random numbers are drawn. Equal seed and prompt give an equal completion as far
    as the model's arithmetic is reproducible: docs/reproducibility.md says where it is not."""
    grammar: str | None = None
    """What is written is a text of this grammar, in llama.cpp's notation (GBNF), which xgrammar and
    vLLM read too; unless the completion is cut off before its end. None: any text."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote."""

    text: str
    """Without the template's end-of-message token."""
    usage: Usage
    finish: Literal["stop", "length", "context"]
    """``stop``: the model ended its message; ``length``: ``max_tokens`` did; ``context``: the
    prompt leaves no room in the model's context, and nothing was written."""
    logprob: float | None = None
    """Natural logarithm of the probability, at the sampling temperature, that the model writes just
    this; None where the backend does not know."""


class Backend(Protocol):
    """A language model. Calls are blocking and may come from many threads at once."""

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        """Write the next message of a chat.

        Args:
            prompt: The chat. With ``tools``, actions of the assistant that are tool calls are shown
                to the model as such, and ``tool`` messages after them as their answers.
            sampling: How it is drawn.
            tools: Tools that the model may call in its own format. A call comes back as the action
                that makes it. None: the model sees no tools but those that the prompt tells of.

        Raises:
            BackendError: There is no answer to be had.
        """
        ...


class Closing(ABC):
    """A backend that is its own context, and is closed at its end."""

    @abstractmethod
    def close(self) -> None:
        """Take no more calls, and give back what they needed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Agent(Protocol):
    """A policy: a function of the conversation, without a state of its own."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message.

        Args:
            view: The dialogue so far: customer, agent and tools.
            seed: Where the agent's luck comes from.

        Raises:
            AgentFailure: It cannot go on with this dialogue.
            BackendError: The model behind it did not answer.
        """
        ...


AgentFactory: TypeAlias = Callable[[Task], Agent]
"""Makes the agent for a task: language models ignore it, scripted ones look at its goal."""
