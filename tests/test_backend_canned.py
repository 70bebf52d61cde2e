"""The fake language model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from agents.backends.canned import CannedBackend
from agents.base import BackendError, Completion, Sampling
from toolwoz_gym.types import Usage

PROMPT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello you there"}]


def test_a_function_sees_prompt_and_sampling() -> None:
    backend = CannedBackend(lambda prompt, how: f"{prompt[-1]['content']} {how.seed}")
    assert backend.complete(PROMPT, Sampling(seed=7)) == Completion(
        "hello you there 7", Usage(5, 4), "stop"
    )


def test_texts_are_replayed_once_each_from_any_thread() -> None:
    texts = [str(i) for i in range(100)]
    backend = CannedBackend(texts)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: backend.complete(PROMPT, Sampling()), texts))
    assert sorted(answer.text for answer in answers) == sorted(texts)
    with pytest.raises(BackendError, match="written"):
        backend.complete(PROMPT, Sampling())
