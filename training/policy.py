"""The policy in training: a base model with a LoRA adapter on it."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save

from agents.adapters import WEIGHTS, chat_files, check_adapter
from agents.loading import loading
from agents.models import (
    ModelSource,
    base_folder,
    check_vocabulary,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    portable_base,
    resolve,
)
from toolwoz_gym.types import UsageError, one_line
from training.options import TrainOptions

ADAPTER = "default"
"""What PEFT and TRL call the adapter that is trained."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A model to train."""

    model: Any
    """A PeftModel with a trainable adapter, or a plain model that has yet to get one."""
    tokenizer: Any
    new_adapter: Any | None
    """The LoraConfig of the adapter to add; None when the model has one."""
    base: str
    """The base's name for ``adapter_config.json``: see :func:`agents.models.portable_base`."""
    chat_files: list[Path]
    """The tokenizer or chat template that came with the adapter, if any did: it keeps them."""


def load_policy(options: TrainOptions) -> Policy:
    """Load the model that the options name.

    The weights that stay as they are come in the type of the arithmetic on CUDA, where memory is
    dear, and in float32 on the CPU. The adapter's are float32.

    Raises:
        UsageError: There is no such model, its adapter does not fit it, or it cannot be trained.
    """
    source = resolve(options.model)
    if source.adapter is not None and check_adapter(base_folder(source), source.adapter):
        raise UsageError(
            f"{source.adapter} brings embeddings of its own, which are not trained further: merge "
            "it into its base first, and train the result"
        )
    cuda = torch.cuda.is_available()
    dtype = compute_dtype(options) if cuda else torch.float32
    tokenizer = load_tokenizer(source)
    model: Any = load_model(ModelSource(source.base), device=device(), dtype=dtype)
    known = model.get_input_embeddings().weight.shape[0]
    check_vocabulary(tokenizer, known)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= known:
        # Rows are filled up with it where nothing is read or learned: any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    base = portable_base(source)
    if source.adapter is not None:
        with loading(f"{source.adapter} does not fit {source.base}"):
            model = PeftModel.from_pretrained(model, source.adapter, is_trainable=True)
        return Policy(model, tokenizer, None, base, chat_files(source.adapter))
    lora = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    try:  # TRL adds the adapter, later: see on a model without weights whether that can be
        with torch.device("meta"):
            get_peft_model(type(model)(model.config), copy(lora), low_cpu_mem_usage=True)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"PEFT cannot put an adapter on all linear layers of {options.model}: "
            f"{one_line(error)}; take another model, or --lora-dropout 0 where it speaks of dropout"
        ) from error
    return Policy(model, tokenizer, lora, base, [])


def device() -> torch.device:
    """Return where training runs: CUDA, or else the CPU."""
    return pick_device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(options: TrainOptions) -> torch.dtype:
    """Return the type that forward passes run in."""
    return pick_dtype(options.dtype, device())


def save_adapter(model: Any, policy: Policy, dtype: str, folder: Path) -> None:
    """Write the trained adapter, and nothing else, in PEFT's format.

    Args:
        model: The trained PeftModel.
        policy: What was to be trained.
        dtype: "float32" or "bfloat16".
        folder: An existing folder.
    """
    weights = {
        name: weight.detach().to("cpu", getattr(torch, dtype)).contiguous()
        for name, weight in get_peft_model_state_dict(
            model, adapter_name=ADAPTER, save_embedding_layers=False
        ).items()
    }
    # safetensors' own way to write a file lets nobody else read it.
    (folder / WEIGHTS[0]).write_bytes(save(weights, {"format": "pt"}))
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = policy.base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set: its order is luck
    config.save_pretrained(folder)
    for file in policy.chat_files:
        copyfile(file, folder / file.name)
