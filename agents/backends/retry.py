"""What to do when a request to a model's server fails: try again, give up, change the request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from socket import gaierror
from threading import Event
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    wait_exception,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from agents.backends.transport import BrokenAnswer, Reply, Unreached
from toolwoz_gym.types import one_line

_PASSING_STATUS = frozenset({408, 409, 425, 429})

_NO_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})

_NO_CONTEXT = re.compile(
    r"maximum (context|model|prompt) length|context (length|window|size|limit)"
    r"|tokens exceed the configured limit|prompt is too long"
    r"|max_tokens must be at least 1, got 0",  # vLLM's, when the prompt fills it to the last token
    re.IGNORECASE,
)

_CONTEXT = re.compile(r"maximum (?:context|model) length (?:is|of) +(\d+)", re.IGNORECASE)

_LENGTH = ("max_tokens", "max_completion_tokens")

_TOO_LARGE = re.compile(
    r"too large|greater than|less than|above maximum|maximum allowed|range of", re.IGNORECASE
)

_MODERATED = re.compile(
    r"moderation|flagged|content.?(filter|policy|management)|guardrail", re.IGNORECASE
)

_UNREADABLE = re.compile(
    # Groq's, SGLang's, llama.cpp's and Ollama's words.
    r"\b(fail|error|unable|could not|cannot)\w*.{0,9}"
    r"\b(pars|decod|extract|generat)\w+.{0,9}\b(tool|function|fc|input at pos|model|generated)\b"
    r"|\b(tool|function)[ _-]?(call|use)\w*.{0,9}\b(pars|valid|generat)\w+.{0,9}\b(fail|error)"
    r"|\bmalformed.{0,9}\b(tool|function)[ _-]?(call|use)"
    r"|output that does not match the expected"
    # vLLM's, of gpt-oss and of calls that it demands.
    r"|unexpected token \d+ while expecting|validation errors? for list\[function",
    re.IGNORECASE | re.DOTALL,
)
"""How servers say that they could not read what the model wrote."""

_UNREADABLE_CODES = frozenset({"tool_use_failed", "output_parse_failed", "json_validate_failed"})

_NO_JSON = re.compile(
    r"(Expecting|Extra data|Unterminated|Invalid (control|\\)).{0,60}line \d+ col"
)
"""Python's words for the same, which are all that vLLM says."""

_NOTHING = "column 1 (char 0)"
"""Where a text is no JSON from its beginning: of a broken page, gateways say so, too."""

_MOST_SAID = 10_000
"""Characters of a server's words that are looked at."""

_OF_THE_REQUEST = re.compile(r"messages\W|tool_call_id|not support|must be|requires?\b")
"""Words of errors that are about what was sent."""


@dataclass(eq=False)
class Refusal(Exception):
    """An answer that is an error."""

    status: int
    """The HTTP status."""
    said: str
    """The server's own words, where it wrote any."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The error as the server describes it: ``code``, ``type``, ``param``."""
    body: Any = None
    """All that was answered."""
    headers: Mapping[str, Any] | Message = field(default_factory=dict)
    """Those of the answer, by small names or names in any case."""

    @classmethod
    def of(cls, status: int, text: str, headers: Mapping[str, Any] | Message) -> Refusal:
        """Read an error.

        Args:
            status: The HTTP status.
            text: What was answered.
            headers: Those of the answer, by small names or names in any case.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        error = body.get("error", body) if isinstance(body, dict) else body
        details = error if isinstance(error, dict) else {}
        words = (error, details.get("message"), details.get("detail"), text, f"HTTP {status}")
        said = next(word for word in words if isinstance(word, str) and word.strip())
        return cls(status, said[:_MOST_SAID], details, body, headers)

    def detail(self, name: str) -> str:
        """Return a part of the description as text; ``""`` if it has no such part."""
        return str(self.details.get(name) or "")


FAILED = (Unreached, BrokenAnswer, Refusal)
"""Everything that a request can fail with."""


def accepted(reply: Reply) -> Any:
    """Return the JSON of an answer.

    Raises:
        Refusal: It is an error, perhaps with the status of a good answer.
        BrokenAnswer: It is no JSON that Python reads.
    """
    if not 200 <= reply.status < 300:
        raise Refusal.of(reply.status, reply.body.decode("utf-8", "replace"), reply.headers)
    try:
        answer = json.loads(reply.body)
    except (ValueError, RecursionError):  # the second: nested deeply
        raise BrokenAnswer("the answer is not valid JSON") from None
    if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
        refusal = Refusal.of(500, reply.body.decode("utf-8", "replace"), reply.headers)
        code = refusal.details.get("code")
        if isinstance(code, int) and 400 <= code < 600:
            refusal.status = code
        raise refusal
    return answer


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is tried, and how long is waited in between."""

    tries: int = 8
    """A request is tried at most so often."""
    tries_of_nobody: int = 3
    """The same of a server that has never answered, where nobody listens."""
    first: float = 1.0
    """Seconds: the wait after the first failure is a random part of it; each later wait is drawn
    from twice as much."""
    longest: float = 60.0
    """Seconds: the most that is waited unasked. A server that asks for more has failed."""

    def retrying(
        self,
        closing: Event,
        has_answered: Callable[[], bool],
        on_retry: Callable[[RetryCallState], None],
    ) -> Retrying:
        """Return what tries again after errors that pass.

        Args:
            closing: Ends a wait when it is set.
            has_answered: Says whether the server ever has.
            on_retry: Called before each wait.
        """

        def is_enough(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            nobody = is_unreachable(error) and not has_answered()
            return state.attempt_number >= (self.tries_of_nobody if nobody else self.tries)

        return Retrying(
            retry=retry_if_exception(self._passes),
            stop=is_enough,
            wait=wait_exception(_asked_wait)
            + wait_random_exponential(multiplier=self.first, max=self.longest),
            sleep=sleep_using_event(closing),
            before_sleep=on_retry,
            reraise=True,
        )

    def _passes(self, error: BaseException) -> bool:
        """Return whether the same request may succeed later."""
        if not isinstance(error, Refusal):
            return isinstance(error, FAILED)
        if _asked_wait(error) > self.longest or concerns_all(error):
            return False
        return error.status in _PASSING_STATUS or error.status >= 500


def concerns_all(error: Exception) -> bool:
    """Return whether every other request fails too, for as long as nobody does something.

    That is so when the key, the model's name or the address is wrong, and when the account has run
    dry, which OpenAI tells like a rate limit.
    """
    if not isinstance(error, Refusal):
        return False
    lasting = bool(_hint(error)) and not _is_moderated(error)
    return lasting or error.detail("code") == "insufficient_quota"


def is_unreachable(error: BaseException | None) -> bool:
    """Return whether nobody listens at the address, or there is no such host."""
    if not isinstance(error, Unreached):
        return False
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ConnectionRefusedError, gaierror)):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def overflows(error: Refusal) -> bool:
    """Return whether a request was refused because the model's context is too short for it."""
    if {error.detail("code"), error.detail("type")} & _NO_CONTEXT_CODES:
        return True
    return error.status in (400, 413, 422) and bool(_NO_CONTEXT.search(error.said))


def wants_too_much(error: Refusal, max_tokens: int) -> bool:
    """Return whether ``max_tokens`` alone is refused: no prompt would be short enough for it."""
    if overflows(error):
        context = _CONTEXT.search(error.said)
        # Of a prompt that is too long by itself, vLLM says so without a word about the length.
        named = str(max_tokens) in re.findall(r"\d+", _CONTEXT.sub("", error.said))
        return context is not None and named and max_tokens >= int(context[1])
    return refused_parameter(error, _LENGTH) is not None and bool(_TOO_LARGE.search(error.said))


def refused_parameter(error: Refusal, names: Container[str]) -> str | None:
    """Return which of the parameters ``names`` a server refuses; None: it is another fault."""
    if error.status not in (400, 403, 422) or _is_moderated(error):
        return None
    words = re.findall(r"\w+", f"{error.detail('param')} {error.said}")
    return next((word for word in words if word in names), None)


def unreadable_output(error: Refusal, *, native: bool) -> str | None:
    """Return what the model wrote, if the error is that its server could not read it.

    Servers that take calls out of a model's text answer so when the model made a mistake in one:
    with what it wrote or with their parser's words, then these are returned. None: it is another
    fault.

    In plain text, the parser's words are left out: they would be said to somebody.

    Args:
        error: What was answered.
        native: Whether the model was shown tools.
    """
    wrote = error.details.get("failed_generation")
    if isinstance(wrote, str) and wrote.strip():
        return wrote
    said = error.said if native else ""  # what the model wrote is not known
    if error.detail("code") in _UNREADABLE_CODES:
        return said
    if error.status not in (400, 422, 500) or _OF_THE_REQUEST.search(error.said):
        return None
    no_json = native and _NO_JSON.search(error.said)
    if no_json and (error.status != 500 or _NOTHING not in error.said):
        return said
    return said if _UNREADABLE.search(f"{error.said} {error.detail('type')}") else None


def describe(error: Exception) -> str:
    """Say in one line what a request failed with."""
    if isinstance(error, Refusal):
        hint = _hint(error) if concerns_all(error) else ""
        return f"{hint}HTTP {error.status}: {one_line(error.said)}"
    return one_line(error)


def _hint(error: Refusal) -> str:
    """Say what can be done about an error that concerns all requests."""
    if 300 <= error.status < 400:
        place = error.headers.get("location") or "another address"
        return f"the server points to {one_line(place)}, where no prompt is sent unasked: "
    return _HINTS.get(error.status, "")


_HINTS = {
    401: "the API key is missing or wrong: ",
    402: "the account has run dry: ",
    403: "the API key does not allow it: ",
    404: "unknown model or address (most end in /v1): ",
}


def _is_moderated(error: Refusal) -> bool:
    """Return whether a content filter refused this one prompt.

    Its 403 says so in a code, a type, in words or in OpenRouter's ``metadata``.
    """
    return error.status == 403 and bool(_MODERATED.search(f"{error.said} {error.body}"))


def _asked_wait(error: BaseException) -> float:
    """Return for how many seconds the server asks to be left alone; 0.0: it does not."""
    asked = str(error.headers.get("retry-after", "")) if isinstance(error, Refusal) else ""
    with suppress(ValueError):
        return max(0.0, float(asked))
    with suppress(ValueError, OverflowError):  # years and time zones that there are not
        moment = parsedate_to_datetime(asked).astimezone(UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return 0.0
