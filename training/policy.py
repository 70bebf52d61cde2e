"""The policy in training: a base model with a LoRA adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from agents.models import (
    ModelSource,
    check_vocabulary,
    load_model,
    load_tokenizer,
    loading,
    pick_device,
    pick_dtype,
    resolve,
)
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
    """The base model's portable name, for ``adapter_config.json``."""


def load_policy(options: TrainOptions) -> Policy:
    """Load the model that the options name.

    The weights that stay as they are come in the type of the arithmetic on CUDA, where memory is
    dear, and in float32 on the CPU. The adapter's are float32.

    Raises:
        UsageError: There is no such model, it cannot be trained, or its adapter does not fit it.
    """
    source = resolve(options.model)
    cuda = torch.cuda.is_available()
    dtype = compute_dtype(options) if cuda else torch.float32
    tokenizer = load_tokenizer(source)
    model: Any = load_model(ModelSource(source.base), device=device(), dtype=dtype)
    known = model.get_input_embeddings().weight.shape[0]
    check_vocabulary(tokenizer, known)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= known:
        # Rows are filled up with it where nothing is read or learned: any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if source.adapter is not None:
        with loading(f"{source.adapter} does not fit {source.base}"):
            model = PeftModel.from_pretrained(model, source.adapter, is_trainable=True)
        return Policy(model, tokenizer, None, source.base)
    lora = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return Policy(model, tokenizer, lora, source.base)


def device() -> torch.device:
    """Return where training runs: CUDA, or else the CPU."""
    return pick_device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(options: TrainOptions) -> torch.dtype:
    """Return the type that forward passes run in."""
    return pick_dtype(options.dtype, device())


def save_adapter(model: Any, base: str, dtype: str, folder: Path) -> None:
    """Write the trained adapter, and nothing else, in PEFT's format.

    Args:
        model: The trained PeftModel.
        base: What the adapter is to call its base model.
        dtype: "float32" or "bfloat16".
        folder: An existing folder.
    """
    weights = {
        name: weight.detach().to("cpu", getattr(torch, dtype)).contiguous()
        for name, weight in get_peft_model_state_dict(
            model, adapter_name=ADAPTER, save_embedding_layers=False
        ).items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set: its order is luck
    config.save_pretrained(folder)
