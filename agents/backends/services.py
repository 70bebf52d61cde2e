"""Models of the services that LiteLLM knows, held to the same bounds as other servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from agents.backends.retry import FAILED, Refusal
from agents.backends.transport import LARGEST, BrokenAnswer, Connections, Unreached
from toolwoz_gym.types import UsageError

_HOP = ("host", "content-length", "accept-encoding", "connection", "transfer-encoding")
"""Headers of a request that whoever sends it writes."""

_UNPACKED = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that do not hold for an answer that was unpacked."""


def reach(model: str, timeout: float) -> tuple[Callable[..., Any], Callable[[], None]]:
    """Return what sends a chat completion to a model through LiteLLM, and what ends that.

    Args:
        model: LiteLLM's name of it.
        timeout: Seconds after which a request has failed.

    Raises:
        UsageError: LiteLLM is not installed, or does not know the service.
    """
    # Without it, importing LiteLLM asks the network for its table of models.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import httpx
        import litellm
        from openai import OpenAIError
    except ImportError as error:
        raise _not_installed(error) from error
    litellm.suppress_debug_info = True  # it prints advice at every error
    try:
        litellm.get_llm_provider(model)
    except OpenAIError:
        raise UsageError(
            f"LiteLLM knows no service of {model!r}: give one like anthropic/claude-haiku-4-5"
        ) from None
    connections = Connections()

    class Bounded(httpx.BaseTransport):  # type: ignore[misc]
        """Carries LiteLLM's requests."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            headers = {k: v for k, v in request.headers.items() if k not in _HOP}
            seconds = request.extensions.get("timeout", {}).get("read") or timeout
            try:
                reply = connections.exchange(
                    request.method,
                    str(request.url),
                    headers,
                    request.read(),
                    seconds=seconds,
                    largest=LARGEST,
                )
            except (Unreached, BrokenAnswer) as error:
                raise httpx.ReadError(str(error), request=request) from error
            if 300 <= reply.status < 400:
                elsewhere = Refusal.of(reply.status, "", reply.headers)
                raise httpx.ReadError(str(elsewhere), request=request) from elsewhere
            kept = [(k, v) for k, v in reply.headers.items() if k.lower() not in _UNPACKED]
            return httpx.Response(reply.status, headers=kept, content=reply.body, request=request)

    # One is for OpenAI's protocol, the other for all others.
    litellm.sync_transport = Bounded()
    litellm.client_session = httpx.Client(transport=litellm.sync_transport, trust_env=False)

    def send(**request: Any) -> Any:
        try:
            answer = litellm.completion(**request, timeout=timeout, max_retries=0, num_retries=0)
        except OpenAIError as error:
            failure = _translated(error)
        except ImportError as error:  # some services want packages that LiteLLM does not bring
            raise _not_installed(error) from error
        else:
            return answer.model_dump()
        raise failure  # here, where it keeps its cause

    return send, connections.close


def _not_installed(error: ImportError) -> UsageError:
    return UsageError(
        f"LiteLLM cannot be imported ({error}): pip install 'toolwoz-gym[litellm]' into an "
        "environment of its own"
    )


def _translated(error: Exception) -> Exception:
    """Return an error of LiteLLM's as what it stands for.

    They derive from those of the ``openai`` library, but not each has all that these have.
    """
    from litellm import ContextWindowExceededError
    from openai import APIConnectionError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FAILED):  # ours, below LiteLLM's
            return cause
        cause = cause.__cause__ or cause.__context__
    said = str(getattr(error, "message", "") or error)
    status = getattr(error, "status_code", None)
    if isinstance(error, APIConnectionError) or not isinstance(status, int):
        return BrokenAnswer(said)  # what LiteLLM could not make sense of
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    # What the service answered stands in the message, after LiteLLM's words.
    answered = said[said.find("{") : said.rfind("}") + 1]
    refusal = Refusal.of(status, answered or said, headers)
    if not refusal.details:
        refusal.said = said
        body = getattr(error, "body", None)
        refusal.details = body if isinstance(body, Mapping) else {}
    if isinstance(error, ContextWindowExceededError):
        refusal.details = {**refusal.details, "code": "context_length_exceeded"}
    return refusal
