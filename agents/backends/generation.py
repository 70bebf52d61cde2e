"""Models with windowed, recurrent or hybrid layers, run by the library's own generation.

``generate`` knows the cache of each kind of layer. Here it answers calls together whose prompts are
equally long, and others one after another: the padding that would make them equal is read by
recurrent layers like words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LibraryGeneration:
    """A model, run by ``generate``, with tokens that somebody else draws."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model, and leave it as it is."""
        self._model: Any = copy(model)
        # What a checkpoint recommends, a penalty for repetitions for example, is not asked for.
        self._model.generation_config = GenerationConfig()

    def run(
        self,
        prompts: torch.Tensor,
        limit: int,
        write: Callable[[torch.Tensor], Sequence[int]],
        ended: Callable[[], Sequence[bool]],
    ) -> None:
        """Go on with some texts until all have ended.

        Args:
            prompts: Their tokens, of shape [texts, tokens].
            limit: At most so many tokens are written to each.
            write: Takes the logits of the next tokens, of shape [texts, vocabulary], and returns
                the tokens; anything for texts that have ended.
            ended: Returns which texts have ended.
        """
        self._model.generate(
            inputs=prompts.to(self._model.device),
            attention_mask=torch.ones_like(prompts, device=self._model.device),
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=limit),
            logits_processor=LogitsProcessorList([_Written(write)]),
            stopping_criteria=StoppingCriteriaList([_Ended(ended)]),
        )


class _Written(LogitsProcessor):  # type: ignore[misc]
    """Leaves ``generate`` no choice but the tokens that were drawn."""

    def __init__(self, write: Callable[[torch.Tensor], Sequence[int]]) -> None:
        self._write = write

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = torch.tensor(self._write(scores), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class _Ended(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, ended: Callable[[], Sequence[bool]]) -> None:
        self._ended = ended

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.tensor(self._ended(), device=input_ids.device)


def longest_context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a model can read: recurrent ones may know no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(min(positions or tokenizer.model_max_length, sys.maxsize))
