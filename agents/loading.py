"""What libraries say of files that they cannot load, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import PickleError
from struct import error as StructError

from toolwoz_gym.types import UsageError, one_line


@contextmanager
def loading(failure: str) -> Iterator[None]:
    """Say in one line why files are not those of a model that can be used.

    Args:
        failure: What then cannot be done.

    Raises:
        UsageError: The libraries cannot make anything of the files.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    damaged = (SafetensorError, PickleError, StructError, EOFError, OSError, ValueError)
    unknown = (ImportError, LookupError, AttributeError, TypeError, StrictDataclassError)
    failed = (RuntimeError, ArithmeticError, AssertionError, MemoryError)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it has to say of it is said below
    try:
        yield
    except Exception as error:
        # A tokenizer's file that is no tokenizer's raises an Exception and nothing else.
        if type(error) is not Exception and not isinstance(error, (*damaged, *unknown, *failed)):
            raise
        raise UsageError(f"{failure}: {_reason(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _reason(error: Exception) -> str:
    """Return what an error of a library says, in one line, for those who cannot mend the code."""
    if "trust_remote_code" in str(error):
        return (
            "it comes with code of its own, which is never run here: take a model that "
            "transformers knows by itself"
        )
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    if isinstance(error, PickleError):
        return "its weights are damaged, or are code: fetch them anew"
    if isinstance(error, (OSError, ValueError, ImportError, RuntimeError)):
        return one_line(error)
    return (
        "its files are damaged, or made for another version of transformers "
        f"({type(error).__name__}: {one_line(error)})"
    )
