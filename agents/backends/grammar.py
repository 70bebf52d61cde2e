"""Completions that keep to a grammar: which tokens may come next, for the backends in process.

xgrammar does the work. It is imported when the first grammar comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from threading import Lock
from typing import TYPE_CHECKING, Any

from toolwoz_gym.types import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Grammars:
    """The grammars of one model's tokens. Safe to use from many threads."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stops: Set[int]
    ) -> None:
        """Prepare nothing yet.

        Args:
            tokenizer: The model's.
            vocabulary: Tokens that the model tells apart: the width of its logits.
            stops: The tokens that end a completion.
        """
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stops = sorted(stops)
        self._compiler: Any = None
        self._lock = Lock()

    def matcher(self, grammar: str) -> Any:
        """Return an ``xgrammar.GrammarMatcher`` for one completion.

        A grammar is compiled once, and kept.

        Raises:
            UsageError: xgrammar is not installed.
        """
        try:
            import xgrammar
        except ImportError as error:
            raise UsageError(
                f"xgrammar cannot be imported ({error}): pip install 'toolwoz-gym[constrain]'"
            ) from error
        with self._lock:
            if self._compiler is None:
                tokens = xgrammar.TokenizerInfo.from_huggingface(
                    self._tokenizer, vocab_size=self._vocabulary, stop_token_ids=self._stops
                )
                self._compiler = xgrammar.GrammarCompiler(tokens, max_threads=1)
            return xgrammar.GrammarMatcher(self._compiler.compile_grammar(grammar))


def mask(logits: torch.Tensor, matchers: Mapping[int, Any]) -> None:
    """Make the tokens impossible that a grammar does not allow next.

    Args:
        logits: Shape [rows, vocabulary]; changed in place.
        matchers: By row; a row without one may go on with any token.
    """
    import xgrammar

    bits = xgrammar.allocate_token_bitmask(*logits.shape)
    for row, matcher in matchers.items():
        matcher.fill_next_token_bitmask(bits, row)
    xgrammar.apply_token_bitmask_inplace(logits, bits.to(logits.device), indices=[*matchers])
