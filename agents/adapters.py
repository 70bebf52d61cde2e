"""PEFT adapters: whether one fits its base, and what lies beside its weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from agents.loading import loading
from toolwoz_gym.types import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG = "adapter_config.json"

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_TEMPLATE = "chat_template.jinja"

_TOKENIZER = "tokenizer_config.json"
"""Where it is, PEFT too takes an adapter to have a tokenizer of its own."""

_PIECES = ("*token*.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template*")


_LAYER = re.compile(r"\.(\d+)\.")
"""A layer's number in a module's name: the first there is, experts have others behind it."""


def chat_files(adapter: str) -> list[Path]:
    """Return the files in an adapter's folder that decide how chats become tokens.

    Returns:
        A tokenizer, or a chat template for the base's tokenizer, or nothing.

    Raises:
        UsageError: There are pieces of a tokenizer, which cannot be used.
    """
    files = sorted({file for piece in _PIECES for file in Path(adapter).glob(piece)})
    names = [file.name for file in files]
    if _TOKENIZER not in names and names not in ([], [_TEMPLATE]):
        raise UsageError(
            f"{adapter} has {', '.join(names)} but no {_TOKENIZER}: complete the adapter's "
            "tokenizer, or take these files away if the base's is meant"
        )
    return files


def adapter_digest(adapter: str) -> str:
    """Return a digest of what is in an adapter's folder: trained anew, it is another adapter.

    Returns:
        64 hexadecimal digits.
    """
    digest = sha256()
    for file in [*sorted(Path(adapter).glob("adapter_*")), *chat_files(adapter)]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def adapted_tokenizer(tokenizer: PreTrainedTokenizerBase, adapter: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model with an adapter.

    Args:
        tokenizer: The base's.
        adapter: The adapter's folder: a tokenizer or a chat template there is put first.

    Raises:
        UsageError: The adapter's tokenizer cannot be loaded.
    """
    files = {file.name: file for file in chat_files(adapter)}
    if _TOKENIZER in files:
        own = _own_tokenizer(adapter)
        own.chat_template = own.chat_template or tokenizer.chat_template
        return own
    if files:
        tokenizer.chat_template = files[_TEMPLATE].read_text("utf-8")
    return tokenizer


def add_tokens(model: PreTrainedModel, adapter: str) -> int:
    """Make room in a base for the tokens that an adapter's own tokenizer adds, as PEFT does.

    Returns:
        How many there are. Their embeddings come with the adapter's weights.

    Raises:
        UsageError: The adapter's tokenizer cannot be loaded.
    """
    if not any(file.name == _TOKENIZER for file in chat_files(adapter)):
        return 0
    tokens = len(_own_tokenizer(adapter))
    added = max(0, tokens - int(model.get_input_embeddings().weight.shape[0]))
    if added:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    return added


def check_adapter(base: str, adapter: str) -> bool:
    """Refuse an adapter that does not fit its base.

    PEFT takes what fits and leaves out the rest, and then plays another model than was trained.
    Here the adapter is put on a model without weights: of the base, only its configuration is read.

    Args:
        base: What ``from_pretrained`` takes for the base.
        adapter: The adapter's folder.

    Returns:
        Whether the adapter brings embeddings of its own.

    Raises:
        UsageError: It does not fit.
    """
    import torch
    from peft import PeftConfig, PeftModel, load_peft_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    if not any((Path(adapter) / name).is_file() for name in WEIGHTS):
        raise UsageError(f"{adapter} has no weights: there is no {WEIGHTS[0]}")
    with loading(f"no model can be loaded from {base}"), torch.device("meta"):
        known = AutoConfig.from_pretrained(base, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    places = {module: name for name, module in model.named_modules()}
    embedding = places[model.get_input_embeddings()]
    added = add_tokens(model, adapter)
    misfit = f"the adapter {adapter} does not fit {base}"
    with loading(misfit), warnings.catch_warnings(action="ignore"):
        config = PeftConfig.from_pretrained(adapter)
        if config.is_prompt_learning:
            raise UsageError(f"{adapter} holds a learned prompt, not weights: take a LoRA adapter")
        keys = load_peft_weights(adapter, "cpu").keys()
        fitted = PeftModel(model, config, low_cpu_mem_usage=True)
        result = fitted.load_adapter(
            adapter,
            "default",
            torch_device="cpu",
            low_cpu_mem_usage=True,
            key_mapping=getattr(model, "_checkpoint_conversion_mapping", {}),
        )
    for names, what in (
        (result.unexpected_keys, "of its weights have no place there"),
        (result.missing_keys, "weights are missing"),
    ):
        if names:
            raise UsageError(
                f"{misfit}: {len(names)} {what}, the first is {names[0]}; take the base that it "
                "was trained on"
            )
    chosen = isinstance(getattr(config, "target_modules", None), str)
    if not chosen and getattr(config, "layers_to_transform", None) is None:
        _check_depth(misfit, fitted.base_model.targeted_module_names, places.values())
    own = (f"{embedding}.weight", f"{embedding}.base_layer.weight", "trainable_tokens_delta")
    brings = any(key.endswith(own) for key in keys)
    if added and not brings:
        raise UsageError(
            f"the tokenizer in {adapter} has {added} tokens more than {base}, and the adapter "
            "brings no embeddings for them: save it with its embeddings"
        )
    return brings


def _check_depth(misfit: str, changed: Iterable[str], modules: Iterable[str]) -> None:
    """Refuse an adapter of a shallower model: it changes the first layers alone.

    Args:
        misfit: What messages say first.
        changed: The modules that it changes.
        modules: All modules that there are.
    """

    def layers(names: Iterable[str]) -> list[int]:
        return sorted({int(found[1]) for found in map(_LAYER.search, names) if found})

    kinds = {_LAYER.sub(".#.", name, count=1) for name in changed}
    there = layers(name for name in modules if _LAYER.sub(".#.", name, count=1) in kinds)
    found = layers(changed)
    if len(found) < len(there) and found == there[: len(found)]:
        raise UsageError(
            f"{misfit}: it is for the first {len(found)} of {len(there)} layers, as that of a "
            f"shallower model; if that is meant, list them in {CONFIG} as layers_to_transform"
        )


def _own_tokenizer(adapter: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer in an adapter's folder."""
    from transformers import AutoTokenizer

    with loading(f"no tokenizer can be loaded from {adapter}"):
        return AutoTokenizer.from_pretrained(adapter, trust_remote_code=False)
