"""Adapters: those that fit are what was trained, for plain PEFT too; others are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from agents.adapters import adapter_digest, check_adapter
from agents.models import WARMSTART, ModelSource, base_folder, load_model, load_tokenizer, resolve
from toolwoz_gym.records import write_jsonl
from toolwoz_gym.types import UsageError
from training.policy import load_policy, save_adapter
from training.sft import SFTOptions, train_sft

CPU = torch.device("cpu")
IDS = torch.arange(8)[None]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]


def make_tokenizer(*more: str) -> transformers.PreTrainedTokenizerFast:
    """One token per byte, and some marks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = [*MARKS, *more]
    bare = Tokenizer(models.BPE({t: i for i, t in enumerate([*MARKS, *letters, *more])}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens(marks)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATE
    )


def make_model(folder: Path, layers: int = 3) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_other(kind: type[transformers.PreTrainedConfig], folder: Path, **more: Any) -> Path:
    """A model of another kind, whose layers are not plain attention to the whole text."""
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    marks = {"bos_token_id": None, "eos_token_id": 4, "pad_token_id": None}
    torch.manual_seed(0)
    config = kind(vocab_size=len(tokenizer), **sizes, **heads, **marks, **more)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, **lora: Any) -> Path:
    """An adapter that changes the model a lot, but says that new weights begin as nothing."""
    torch.manual_seed(1)
    kind = {"target_modules": "all-linear", "r": 2, "task_type": "CAUSAL_LM", **lora}
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(init_lora_weights=False, **kind)
    peft.get_peft_model(model, config).save_pretrained(folder)
    edit(folder, init_lora_weights=True)
    return folder


def edit(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename(adapter: Path, old: str, new: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name.replace(old, new): x for name, x in load_file(file).items()}, file)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter")


def logits(source: ModelSource) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(source, device=CPU, dtype=torch.float32)(IDS).logits


def logits_of_peft(adapter: Path) -> torch.Tensor:
    """What anybody gets who has PEFT and this folder, and not this project."""
    with torch.inference_mode():
        return peft.AutoPeftModelForCausalLM.from_pretrained(adapter).eval()(IDS).logits


def sft(model: str, out: Path, **changes: Any) -> Path:
    rows = out.parent / "rows.jsonl"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(rows, [{"messages": chat}] * 2)
    how: dict[str, Any] = {"max_steps": 1, "batch": 2, "learning_rate": 1e-2, "warmup_ratio": 0.0}
    train_sft(SFTOptions(model=model, rows=rows, out=out, dtype="float32", **how, **changes))
    return out


def misfit(name: str, adapter: Path, tmp_path: Path) -> None:
    """Spoil an adapter."""
    weights = adapter / "adapter_model.safetensors"
    if name == "other names":
        rename(adapter, "model.layers", "model.language_model.layers")
    elif name == "half other names":
        rename(adapter, "layers.1.", "layers.9.")
    elif name == "half the names":
        save_file({n: x for n, x in load_file(weights).items() if "layers.0." in n}, weights)
    elif name in ("of a deeper model", "of a shallower model"):
        other = make_model(tmp_path / "other", 4 if "deeper" in name else 2)
        own = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        make_adapter(other, adapter)
        edit(adapter, base_model_name_or_path=own)
    elif name == "other rank":
        edit(adapter, r=4)
    elif name == "other modules":
        edit(adapter, target_modules=["q_proj"])
    elif name == "modules that are not there":
        edit(adapter, target_modules=["query_key_value"])
    elif name == "whole modules that are not there":
        edit(adapter, modules_to_save=["lm_head"])
    elif name == "damaged":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "no weights":
        weights.unlink()
    elif name == "a prompt":
        base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        kind = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
        config = {**kind, "base_model_name_or_path": base}
        (adapter / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "name",
    [
        *("other names", "half other names", "half the names", "of a deeper model"),
        *("of a shallower model", "other rank", "other modules", "modules that are not there"),
        *("whole modules that are not there", "damaged", "no weights", "a prompt"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(
    name: str, adapter: Path, base: Path, tmp_path: Path
) -> None:
    misfit(name, adapter, tmp_path)
    source = resolve(str(adapter))
    for use in (
        lambda: load_model(source, device=CPU, dtype=torch.float32),
        lambda: load_policy(SFTOptions(model=str(adapter), rows=tmp_path, out=tmp_path)),
        lambda: check_adapter(str(base), str(adapter)),  # all that vLLM is asked before it starts
    ):
        with pytest.raises(UsageError) as error:
            use()
        assert str(adapter) in str(error.value) and "\n" not in str(error.value)


def test_other_kinds_of_adapter_that_fit_are_what_peft_makes_of_them(
    base: Path, tmp_path: Path
) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"use_dora": True},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2]},
        {"rank_pattern": {"q_proj": 4}, "use_rslora": True, "bias": "lora_only"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ]
    for number, kind in enumerate(kinds):
        adapter = make_adapter(base, tmp_path / str(number), **kind)
        ours = logits(resolve(str(adapter)))
        torch.testing.assert_close(ours, logits_of_peft(adapter), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_that_is_not_whole_is_one_line(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    without = {name: x for name, x in weights.items() if "layers.1.mlp" not in name}
    save_file(without, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"not whole: 3 weights of the model are missing, \S+ for"):
        logits(ModelSource(str(folder)))

    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(UsageError, match="layers that its config.json does not have"):
        logits(ModelSource(str(folder)))

    # What a model has no place for at all is another matter: a head for vision, for example.
    save_file({**weights, "vision.weight": IDS.float()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(ModelSource(str(folder))), logits(ModelSource(str(base))))

    # Nor is a weight missing that is tied to another.
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tied = {name: x for name, x in weights.items() if name != "lm_head.weight"}
    save_file(tied, folder / "model.safetensors", {"format": "pt"})
    assert logits(ModelSource(str(folder))).isfinite().all()


def test_plain_peft_loads_what_was_trained_on_a_relative_path(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, tmp_path / "models" / "small")
    out = sft("models/small", tmp_path / "adapter")
    monkeypatch.chdir("/")
    source = resolve(str(out))
    assert source == ModelSource(str(tmp_path / "models" / "small"), str(out))
    torch.testing.assert_close(logits(source), logits_of_peft(out))

    # The base has moved since; or it was never more than a path from somewhere.
    for gone in (str(tmp_path / "models" / "other"), "models/small"):
        edit(out, base_model_name_or_path=gone)
        with pytest.raises(UsageError, match=f"base model of the adapter .*{gone}.* write where"):
            resolve(str(out))


def test_plain_peft_loads_what_was_trained_on_the_bundled_model(
    tmp_path: Path,
) -> None:
    options = SFTOptions(model="bundled", rows=tmp_path, out=tmp_path, dtype="float32")
    policy = load_policy(options)
    torch.manual_seed(0)
    with torch.no_grad():
        before = policy.model.eval()(IDS).logits
        for name, weight in policy.model.named_parameters():  # as if training had moved them
            if "lora_B" in name:
                weight += 0.01 * torch.randn_like(weight)
        trained = policy.model(IDS).logits
    out = tmp_path / "adapter"
    out.mkdir()
    save_adapter(policy.model, policy, "float32", out)
    torch.testing.assert_close(logits(resolve(str(out))), trained, atol=2e-2, rtol=0)
    torch.testing.assert_close(logits_of_peft(out), trained, atol=1e-4, rtol=0)
    assert not torch.allclose(before, trained, atol=1)
    # On another machine the data are elsewhere; and adapters of earlier versions have this name.
    converted = Path(base_folder(ModelSource("bundled-base")))
    for name in (f"/somewhere/else/models/{converted.name}", "bundled-base", "bundled"):
        edit(out, base_model_name_or_path=name)
        assert resolve(str(out)) == ModelSource("bundled-base", str(out))
    assert resolve(str(WARMSTART)) == resolve("bundled")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (
            transformers.Gemma3TextConfig,
            {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        (
            transformers.Lfm2Config,
            {"block_multiple_of": 8, "layer_types": ["conv", "full_attention"]},
        ),
    ],
)
def test_models_with_other_layers_are_trained(
    kind: type[transformers.PreTrainedConfig], more: dict[str, Any], tmp_path: Path
) -> None:
    out = sft(str(make_other(kind, tmp_path / "model", **more)), tmp_path / "adapter")
    ours, before = logits(resolve(str(out))), logits(resolve(str(tmp_path / "model")))
    assert not torch.allclose(ours, before, atol=1e-3)
    torch.testing.assert_close(ours, logits_of_peft(out), atol=1e-4, rtol=1e-4)


def test_a_model_on_which_peft_puts_no_adapter_is_one_line(tmp_path: Path) -> None:
    model = make_other(transformers.MambaConfig, tmp_path / "model", state_size=8)
    with pytest.raises(UsageError, match="PEFT cannot put an adapter on .*out_proj") as error:
        sft(str(model), tmp_path / "adapter")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "adapter").exists()


def test_what_training_writes_can_be_read_by_others(base: Path, tmp_path: Path) -> None:
    out = sft(str(base), tmp_path / "adapter")
    usual = tmp_path / "usual"
    usual.touch()
    for file in (out, *out.iterdir()):
        assert file.stat().st_mode & 0o044 == usual.stat().st_mode & 0o044, file


def test_a_template_beside_an_adapter_is_used_and_kept(adapter: Path, base: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    before = adapter_digest(str(adapter))
    (adapter / "chat_template.jinja").write_text("<first>" + TEMPLATE)
    assert adapter_digest(str(adapter)) != before
    tokenizer = load_tokenizer(resolve(str(adapter)))
    assert tokenizer.apply_chat_template(chat, tokenize=False).startswith("<first><|user|>Hi")
    (adapter / "chat_template.jinja").write_text("<new>" + TEMPLATE)
    again = load_tokenizer(resolve(str(sft(str(adapter), adapter.parent / "further"))))
    assert again.apply_chat_template(chat, tokenize=False).startswith("<new><|user|>Hi")


def test_tokens_beside_an_adapter_are_used(base: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("<|call|>")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(2)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] = torch.randn(16)
    config = peft.LoraConfig(
        target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path, save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    call = tokenizer.convert_tokens_to_ids("<|call|>")
    assert load_tokenizer(source)("<|call|>")["input_ids"] == [call]
    ids = torch.tensor([[1, 2, call, 7]])
    with torch.inference_mode():
        ours = load_model(source, device=CPU, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(ours, adapted.eval()(ids).logits, atol=1e-5, rtol=1e-5)
    assert check_adapter(str(base), str(tmp_path)), "vLLM is told that there are embeddings"
    with pytest.raises(UsageError, match="embeddings of its own"):
        load_policy(SFTOptions(model=str(tmp_path), rows=tmp_path, out=tmp_path))

    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(UsageError, match="1 tokens more than .* brings no embeddings"):
        load_model(source, device=CPU, dtype=torch.float32)


def test_pieces_of_a_tokenizer_are_not_passed_over(adapter: Path) -> None:
    (adapter / "added_tokens.json").write_text('{"<|call|>": 261}')
    with pytest.raises(UsageError, match=r"added_tokens.json but no tokenizer_config.json"):
        load_tokenizer(resolve(str(adapter)))
    (adapter / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UsageError, match="no tokenizer can be loaded from"):
        load_tokenizer(resolve(str(adapter)))
    os.remove(adapter / "added_tokens.json")
