"""The policy in training: a base model with a LoRA adapter on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

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
    """Load the model that the options name, in float32 on the CPU, in the compute type on CUDA.

    Raises:
        UsageError: There is no such model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = options.model
    adapter = Path(name) if (Path(name) / "adapter_config.json").exists() else None
    base = name
    if adapter is not None:
        base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        return Policy(model, tokenizer, None, base)
    lora = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return Policy(model, tokenizer, lora, base)


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
        for name, weight in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(folder)


def computes_in_bfloat16(dtype: str) -> bool:
    """Decide whether forward passes run in bfloat16: see :class:`TrainOptions`."""
    if dtype != "auto":
        return dtype == "bfloat16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
