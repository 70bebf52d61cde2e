"""What to do when a request to a model's server fails: try again, give up, or change the request.

Errors are those of the ``openai`` library; LiteLLM's derive from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from socket import gaierror
from threading import Event
from typing import Any

from openai import APIConnectionError, APIError, APIResponseValidationError, OpenAIError
from pydantic import ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    wait_exception,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

BROKEN = (JSONDecodeError, UnicodeDecodeError, ValidationError, APIResponseValidationError)
"""Answers that arrived, but are not what was asked for."""

FAILED = (OpenAIError, *BROKEN)
"""Everything that a request can fail with."""

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
        if _asked_wait(error) > self.longest:
            return False
        if isinstance(error, (APIConnectionError, *BROKEN)):
            return True
        if not isinstance(error, APIError):
            return False
        status = _status(error)
        return not concerns_all(error) and (status in _PASSING_STATUS or status >= 500)


def concerns_all(error: Exception) -> bool:
    """Return whether every other request fails too, for as long as nobody does something.

    That is so when the key, the model's name or the address is wrong, and when the account has run
    dry, which OpenAI tells like a rate limit.
    """
    if not isinstance(error, APIError):
        return False
    lasting = _status(error) in _HINTS and not _is_moderated(error)
    return lasting or error.code == "insufficient_quota"


def is_unreachable(error: BaseException | None) -> bool:
    """Return whether nobody listens at the address, or there is no such host."""
    if not isinstance(error, APIConnectionError):
        return False
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ConnectionRefusedError, gaierror)):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def overflows(error: APIError) -> bool:
    """Return whether a request was refused because the model's context is too short for it."""
    if {str(error.code), str(error.type)} & _NO_CONTEXT_CODES:
        return True
    return _status(error) in (400, 413, 422) and bool(_NO_CONTEXT.search(_said(error)))


def wants_too_much(error: APIError, max_tokens: int) -> bool:
    """Return whether ``max_tokens`` alone is refused: no prompt would be short enough for it."""
    said = _said(error)
    if overflows(error):
        context = _CONTEXT.search(said)
        # Of a prompt that is too long by itself, vLLM says so without a word about the length.
        named = str(max_tokens) in re.findall(r"\d+", _CONTEXT.sub("", said))
        return context is not None and named and max_tokens >= int(context[1])
    return refused_parameter(error, _LENGTH) is not None and bool(_TOO_LARGE.search(said))


def refused_parameter(error: APIError, names: Container[str]) -> str | None:
    """Return which of the parameters ``names`` a server refuses; None: it is another fault."""
    if _status(error) not in (400, 403, 422) or _is_moderated(error):
        return None
    words = re.findall(r"\w+", f"{error.param or ''} {_said(error)}")
    return next((word for word in words if word in names), None)


def describe(error: Exception) -> str:
    """Say in one line what a request failed with."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"the answer is no chat completion ({f'{place}: ' if place else ''}{first['msg']})"
    if isinstance(error, BROKEN):
        return "the answer is not valid JSON"
    if isinstance(error, APIConnectionError):
        cause = error.__cause__
        return _line(f"{error.message} ({str(cause) or repr(cause)})" if cause else error.message)
    if isinstance(error, APIError):
        status = _status(error)
        said = _line(_said(error))
        hint = _HINTS.get(status, "") if concerns_all(error) else ""
        return f"{hint}HTTP {status}: {said}" if status else said
    return _line(str(error))


_HINTS = {
    401: "the API key is missing or wrong: ",
    402: "the account has run dry: ",
    403: "the API key does not allow it: ",
    404: "unknown model or address (most end in /v1): ",
}


def _is_moderated(error: APIError) -> bool:
    """Return whether a content filter refused this one prompt.

    Its 403 says so in a code, a type, in words or in OpenRouter's ``metadata``.
    """
    return _status(error) == 403 and bool(_MODERATED.search(f"{error.message} {error.body}"))


def _said(error: APIError) -> str:
    """Return the server's own words, where it wrote any."""
    body: Any = error.body
    if isinstance(body, str) and body:
        return body
    for key in ("message", "detail"):
        if isinstance(body, dict) and isinstance(body.get(key), str):
            return str(body[key])
    return error.message


def _status(error: APIError) -> int:
    """Return the HTTP status; 0 where there was none."""
    status = getattr(error, "status_code", 0)
    return status if isinstance(status, int) else 0


def _asked_wait(error: BaseException) -> float:
    """Return for how many seconds the server asks to be left alone; 0.0: it does not."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = str(headers.get("retry-after", ""))
    with suppress(ValueError):
        return max(0.0, float(asked))
    with suppress(ValueError, OverflowError):  # years and time zones that there are not
        moment = parsedate_to_datetime(asked).astimezone(UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return 0.0


def _line(text: str) -> str:
    """Return the first line of a text, cut to what fits a terminal."""
    line = (text.strip() or "no reason given").splitlines()[0]
    return line if len(line) <= 300 else f"{line[:300]}…"
