"""Training, on a Llama of two tiny layers whose tokens are bytes."""

import csv
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolwoz_gym.records import ROW_FILES, file_digest, write_jsonl, write_sealed
from toolwoz_gym.types import UsageError
from training.dataset import Balance, balance, read_rows, shuffle
from training.kto import KTOOptions, train_kto
from training.sft import SFTOptions, train_sft

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def said(role, content):
    return {"role": role, "content": content}


def kto_row(question, answer, label):
    return {
        "prompt": [said("user", question)],
        "completion": [said("assistant", answer)],
        "label": label,
    }


def calling(arguments):
    call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def toy_rows():
    questions = [f"ask {i}" for i in range(8)]
    return [
        kto_row(q, answer, good)
        for q in questions
        for answer, good in (("yes", 1 > 0), ("no", 1 < 0))
    ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random model and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # One merge, of two line ends: the kind that can swallow a boundary.
    vocab = {token: i for i, token in enumerate([*specials, *letters, "ĊĊ"])}
    bpe = Tokenizer(models.BPE(vocab, [("Ċ", "Ċ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocab),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            eos_token_id=1,
            pad_token_id=1,
            bos_token_id=None,
        )
    )
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="session")
def warm(tiny, tmp_path_factory):
    """A folder with an adapter that is far from nothing."""
    folder = tmp_path_factory.mktemp("warm")
    rows = folder / "rows.jsonl"
    write_jsonl(rows, [{"messages": [said("user", "ask"), said("assistant", "maybe")]}] * 4)
    options = small(SFTOptions, tiny, rows=rows, out=folder / "adapter", learning_rate=1e-2)
    train_sft(options)
    return folder / "adapter"


def small(options_class, model, **changes):
    options = {
        "model": str(model),
        "lora_r": 4,
        "lora_alpha": 8,
        "max_steps": 4,
        "batch": 4,
        "dtype": "float32",
        "learning_rate": 5e-3,
    }
    return options_class(**{**options, **changes})


def run_folder(folder, rows):
    folder.mkdir()
    write_jsonl(folder / "kto.jsonl", rows)
    return folder


def load(base, adapter=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


@torch.no_grad()
def log_prob(model, tokenizer, question, answer):
    """Sum of the log-probabilities of the answer and its end, worked out by hand."""
    start = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    shown = tokenizer(start)["input_ids"]
    ids = tokenizer(f"{start}{answer}<|im_end|>\n")["input_ids"]
    logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logs[i - 1, ids[i]].item() for i in range(len(shown), len(ids)))


# Rows


def test_rows_of_every_shape_are_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    dialogue = [said("system", "s"), said("user", "a"), said("assistant", "b")]
    dialogue += [said("tool", "c"), said("assistant", "d")]
    write_jsonl(file, [{"messages": dialogue}, {"prompt": dialogue, "completion": dialogue[2:3]}])
    whole, last = read_rows(file, "sft")
    assert whole.learned == [2, 4]
    assert last.learned == [5]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ([1], "not a JSON record"),
        ({"completion": [said("assistant", "a")], "label": True}, "prompt must be a list"),
        (kto_row("q", "a", None), "label must be true or false"),
        (kto_row("q", "a", 1), "label must be true or false"),
        ({**kto_row("q", "a", True), "completion": []}, "completion must be a list of messages"),
        ({**kto_row("q", "a", True), "completion": [said("user", "a")]}, "one assistant message"),
        ({**kto_row("q", "a", True), "prompt": [said("assistant", "a")]}, "must not begin with"),
        ({**kto_row("q", "a", True), "prompt": [said("user", None)]}, "exactly role and content"),
        ({**kto_row("q", "a", True), "prompt": [{"role": "user"}]}, "exactly role and content"),
        ({**kto_row("q", "a", True), "completion": [calling({})]}, "exactly role and content"),
        ({**kto_row("q", "a", True), "tools": [{}]}, "tools must be a list"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path, row, complaint):
    file = tmp_path / "kto.jsonl"
    file.write_text(json.dumps(kto_row("q", "a", True)) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=f"kto.jsonl, line 2: .*{complaint}"):
        read_rows(file, "kto")


def test_files_without_rows_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="has no rows"):
        read_rows(tmp_path / "empty.jsonl", "kto")
    with pytest.raises(UsageError, match="cannot read"):
        read_rows(tmp_path / "missing.jsonl", "kto")


@given(seed=st.integers(0, 2**31), n=st.integers(2, 40))
def test_a_shuffle_keeps_the_rows_and_depends_on_the_seed_alone(seed, n):
    rows = list(range(n))
    assert shuffle(rows, seed) == shuffle(rows, seed)
    assert sorted(shuffle(rows, seed)) == rows
    assert len({tuple(shuffle(rows, s)) for s in range(50)}) > 1


@given(good=st.integers(1, 500), bad=st.integers(1, 500))
def test_balanced_weights_need_no_advice(good, bad):
    rows = Balance(good, bad)
    assert rows.advice(1.0, rows.undesirable_weight(1.0)) is None


def test_advice_on_weights_is_that_of_the_paper(tmp_path):
    # 20 good rows of weight 1, 10 bad ones of weight w: 20 / 10 w is in [1, 4/3] for w in [1.5, 2].
    rows = Balance(20, 10)
    assert rows.undesirable_weight(1.0) == 2.0
    assert "1.50 to 2.00" in rows.advice(1.0, 2.71)
    assert rows.advice(1.0, 1.5) is None
    assert "one kind only" in Balance(3, 0).advice(1.0, 1.0)
    file = tmp_path / "kto.jsonl"
    write_jsonl(file, [kto_row("q", "a", label) for label in (True, False, True)])
    assert balance(read_rows(file, "kto")) == Balance(2, 1)


# Tokens


def encoded(tokenizer, messages, start=0):
    from agents.chat_template import message_ends
    from training.dataset import Row
    from training.encode import encode

    return encode(tokenizer, Row(messages, start), message_ends(tokenizer))


def test_loss_is_on_assistant_messages_alone(tokenizer):
    dialogue = [said("user", "Hi"), said("assistant", "Yo"), said("tool", "T")]
    dialogue += [said("assistant", "Bye")]
    row = encoded(tokenizer, dialogue)
    assert tokenizer.decode(row.ids) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>tool\nT<|im_end|>\n<|im_start|>assistant\nBye<|im_end|>\n"
    )
    learned = [i for i, label in enumerate(row.labels) if label != -100]
    assert all(row.labels[i] == row.ids[i] for i in learned)
    assert tokenizer.decode([row.ids[i] for i in learned]) == "Yo<|im_end|>\nBye<|im_end|>\n"
    last = encoded(tokenizer, dialogue, start=3)
    learned = [token for token in last.labels if token != -100]
    assert tokenizer.decode(learned) == "Bye<|im_end|>\n"


def test_rows_are_dropped_by_reason(tokenizer):
    from training.dataset import Row
    from training.encode import MERGED, TOO_LONG, encode_all

    def row(answer):
        return Row([said("user", "Hi"), said("assistant", answer)], 1)

    rows = [row("short"), row("l" * 200), row("\nmerges with the line end before it"), row("too")]
    kept, dropped = encode_all(tokenizer, rows, max_length=100)
    assert [e.row for e in kept] == [rows[0], rows[3]]
    assert dropped == {TOO_LONG: 1, MERGED: 1}
    exact = len(kept[0].ids)
    assert encode_all(tokenizer, rows[:1], max_length=exact)[1] == {}
    assert encode_all(tokenizer, rows[:1], max_length=exact - 1)[1] == {TOO_LONG: 1}


def test_a_template_that_rewrites_the_prompt_is_refused(tiny):
    from transformers import AutoTokenizer

    rewriting = AutoTokenizer.from_pretrained(tiny)
    rewriting.chat_template = "{{ messages | length }} messages" + TEMPLATE
    with pytest.raises(UsageError, match="chat template"):
        encoded(rewriting, [said("user", "Hi"), said("assistant", "Yo")])


def test_the_bundled_template_only_appends():
    from agents.models import load_tokenizer, resolve

    bundled = load_tokenizer(resolve("bundled-base"))
    dialogue = [said("system", "You sell trains."), said("user", "A train to Ely, for £5?")]
    dialogue += [said("assistant", '{"name": "search_train", "arguments": {"to": "ely"}}')]
    dialogue += [said("tool", '[{"id": "TR1"}]'), said("assistant", "TR1 goes at 5.")]
    dialogue += [said("user", "Fine"), said("assistant", "(wave)")]
    for messages in (dialogue, dialogue[1:]):
        row = encoded(bundled, messages)
        texts = [bundled.decode(row.ids[a:b]) for a, b in row.spans]
        spoken = [m["content"] + "<|im_end|>\n" for m in messages if m["role"] == "assistant"]
        assert texts == spoken


# KTO


def test_kto_raises_good_rows_and_lowers_bad_ones(tiny, tokenizer, tmp_path):
    run = run_folder(tmp_path / "run", toy_rows())
    record = train_kto(small(KTOOptions, tiny, run=run, max_steps=20, epochs=9, batch=8))
    before, after = load(tiny), load(tiny, run / "adapter")
    for answer, sign in (("yes", 1), ("no", -1)):
        change = [
            log_prob(after, tokenizer, q, answer) - log_prob(before, tokenizer, q, answer)
            for q in ("ask 1", "ask 5")
        ]
        assert all(sign * c > 0.1 for c in change)
    assert (record["good"], record["bad"], record["dropped"]) == (8, 8, {})
    assert record["metrics"]["last"]["good"] > 0 > record["metrics"]["last"]["bad"]


def test_the_reference_is_the_policy_before_training(tiny, tokenizer, warm, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    import training.trainer

    trainers = []
    train = training.trainer.train

    def spy(stage, **arguments):
        trainers.append(arguments["trainer"])
        return train(stage, **arguments)

    monkeypatch.setattr(training.trainer, "train", spy)
    run = run_folder(tmp_path / "run", toy_rows())
    record = train_kto(small(KTOOptions, warm, run=run, lora_r=64))
    # At the first step policy and reference agree; the plain model would not.
    warmth = [log_prob(load(tiny, a), tokenizer, "ask 1", "yes") for a in (None, warm)]
    assert abs(warmth[1] - warmth[0]) > 0.1
    assert record["metrics"]["first"]["good"] == pytest.approx(0, abs=1e-5)
    assert record["metrics"]["first"]["bad"] == pytest.approx(0, abs=1e-5)
    start = load_file(warm / "adapter_model.safetensors")
    end = load_file(run / "adapter" / "adapter_model.safetensors")
    assert start.keys() == end.keys(), "an adapter is trained further, not replaced"
    assert any(not torch.equal(start[name], end[name]) for name in start)
    held = dict(trainers[0].model.named_parameters())
    for name, weight in start.items():
        reference = held[name.replace(".weight", ".ref.weight")]
        assert torch.equal(reference, weight)
        assert not reference.requires_grad
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny)
    assert config["r"] == 4


def test_kto_sees_the_rows_as_they_were_counted(tiny, tokenizer, tmp_path, monkeypatch):
    from training import trainer as surroundings

    seen = []
    run_trainer = surroundings._run

    def spy(trainer):
        seen.extend(trainer.train_dataset)
        return run_trainer(trainer)

    monkeypatch.setattr(surroundings, "_run", spy)
    rows = [*toy_rows(), kto_row("long " * 99, "yes", True), kto_row("odd", "one", False)]
    run = run_folder(tmp_path / "run", rows)
    record = train_kto(small(KTOOptions, tiny, run=run, max_steps=1, max_length=200))
    from training.encode import TOO_LONG
    from training.kto import LEFT_OVER

    assert record["dropped"] == {TOO_LONG: 1, LEFT_OVER: 1}
    assert record["good"] + record["bad"] == len(seen) == 16
    of_ours = {
        (tuple(e.ids[: e.spans[0][0]]), tuple(e.ids[e.spans[0][0] :]))
        for e in (encoded(tokenizer, r["prompt"] + r["completion"], 1) for r in rows)
    }
    for i, row in enumerate(seen):
        assert (tuple(row["prompt_ids"]), tuple(row["completion_ids"])) in of_ours
        assert row["KL_completion_ids"] == seen[i ^ 1]["completion_ids"]


def test_gradient_checkpointing_changes_memory_alone(warm, tmp_path):
    from safetensors.torch import load_file

    run = run_folder(tmp_path / "run", toy_rows())
    weights = []
    for on in (False, True):
        out = tmp_path / str(on)
        train_kto(small(KTOOptions, warm, run=run, out=out, gradient_checkpointing=on))
        weights.append(load_file(out / "adapter_model.safetensors"))
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-5)


def test_tool_calls_are_learned_in_the_models_own_format(tiny, tmp_path, monkeypatch):
    from transformers import AutoTokenizer
    from trl import KTOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = "{% if tools %}Tools: {{ tools | tojson }}{% endif %}" + (
        TEMPLATE.replace("m['content']", "(m.tool_calls | tojson if m.tool_calls else m.content)")
    )
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    tokenizer.save_pretrained(folder)
    tools = [{"type": "function", "function": {"name": "find"}}]
    rows = [
        {**row, "prompt": [*row["prompt"], calling({"area": "north"}), said("tool", "[]")],
         "completion": [calling({"stars": i, "area": None})], "tools": json.dumps(tools)}
        for i, row in enumerate(toy_rows())
    ]  # fmt: skip
    seen = []

    class Looking(KTOTrainer):
        def train(self, *args, **kwargs):
            seen.extend(self.train_dataset)
            return super().train(*args, **kwargs)

    monkeypatch.setattr("trl.KTOTrainer", Looking)
    train_kto(small(KTOOptions, folder, run=run_folder(tmp_path / "run", rows), max_steps=1))
    texts = {tokenizer.decode(row["prompt_ids"] + row["completion_ids"]) for row in seen}
    whole = [[*row["prompt"], *row["completion"]] for row in rows]
    assert texts == {
        tokenizer.apply_chat_template(chat, tools=tools, tokenize=False) for chat in whole
    }


def test_learned_positions_only_gives_the_same_numbers(tiny, tokenizer):
    from trl.trainer.utils import add_fused_lm_head

    from training.trainer import learned_positions_only

    row = encoded(tokenizer, [said("user", "Hi"), said("assistant", "Yo")])
    ids, labels = torch.tensor([row.ids]), torch.tensor([row.labels])
    model = load(tiny)
    add_fused_lm_head(model)
    everywhere = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    with learned_positions_only():
        learned = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    assert torch.allclose(everywhere, learned, atol=1e-6)
    assert learned.sum().item() == pytest.approx(log_prob(model, tokenizer, "Hi", "Yo"), abs=1e-3)


# Fine-tuning


def test_sft_teaches_the_assistants_words_alone(tiny, tokenizer, tmp_path):
    rows = tmp_path / "rows.jsonl"
    dialogue = [said("user", "zq"), said("assistant", "yes"), said("user", "xj")]
    write_jsonl(rows, [{"messages": [*dialogue, said("assistant", "yes")]}] * 4)
    out = tmp_path / "adapter"
    train_sft(small(SFTOptions, tiny, rows=rows, out=out, max_steps=15, learning_rate=1e-2))
    before, after = load(tiny), load(tiny, out)
    gain = log_prob(after, tokenizer, "zq", "yes") - log_prob(before, tokenizer, "zq", "yes")
    other = log_prob(after, tokenizer, "zq", "zq") - log_prob(before, tokenizer, "zq", "zq")
    assert gain > 2
    assert other < gain / 2
    losses = [
        float(r["loss"]) for r in csv.DictReader((out / "curve.csv").read_text().splitlines())
    ]
    assert len(losses) == 15
    assert losses[-1] < losses[0] - 0.5
    hand = -log_prob(before, tokenizer, "zq", "yes") / 5  # y, e, s, end, line end
    assert losses[0] == pytest.approx(hand, abs=0.5), "a mean over learned tokens"


def test_an_adapter_comes_back_as_it_was_trained(tiny, tokenizer, tmp_path, monkeypatch):
    import training.trainer

    logits = []
    ids = torch.tensor([tokenizer("Hello")["input_ids"]])
    train = training.trainer.train

    def spy(stage, **arguments):
        record = train(stage, **arguments)
        with torch.no_grad():
            logits.append(arguments["trainer"].model.eval()(ids).logits)
        return record

    monkeypatch.setattr(training.trainer, "train", spy)
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, [{"messages": [said("user", "a"), said("assistant", "b")]}] * 4)
    for dtype, error in (("float32", 1e-6), ("bfloat16", 5e-2)):
        out = tmp_path / dtype
        train_sft(small(SFTOptions, tiny, rows=rows, out=out, save_dtype=dtype))
        with torch.no_grad():
            again, plain = load(tiny, out)(ids).logits, load(tiny)(ids).logits
        assert torch.allclose(again, logits[-1], atol=error)
        assert not torch.allclose(again, plain, atol=error)
    sizes = [
        (tmp_path / d / "adapter_model.safetensors").stat().st_size for d in ("float32", "bfloat16")
    ]
    assert sizes[1] < 0.65 * sizes[0]
    assert sorted(p.name for p in (tmp_path / "float32").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "curve.csv",
        "curve.png",
        "training.json",
    ]


def test_a_training_is_not_done_twice_nor_over_another(warm, tiny):
    rows = warm.parent / "rows.jsonl"
    options = small(SFTOptions, tiny, rows=rows, out=warm, learning_rate=1e-2)
    stamp = (warm / "training.json").stat().st_mtime_ns
    assert train_sft(options) == json.loads((warm / "training.json").read_text())
    assert (warm / "training.json").stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match="a training with other seed: "):
        train_sft(small(SFTOptions, tiny, rows=rows, out=warm, learning_rate=1e-2, seed=1))
    with pytest.raises(UsageError, match="holds something else"):
        train_sft(small(SFTOptions, tiny, rows=rows, out=Path(tiny)))


def test_a_training_that_fails_leaves_nothing(tiny, tmp_path, monkeypatch):
    import training.trainer

    def interrupted(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.trainer, "_run", interrupted)
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, [{"messages": [said("user", "a"), said("assistant", "b")]}] * 4)
    with pytest.raises(KeyboardInterrupt):
        train_sft(small(SFTOptions, tiny, rows=rows, out=tmp_path / "adapter"))
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


# What goes wrong


def lines(tmp_path, count=4):
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, [{"messages": [said("user", "a"), said("assistant", "b")]}] * count)
    return rows


def test_a_training_that_diverges_stops_and_keeps_what_it_had(tiny, tmp_path):
    rows, out = lines(tmp_path), tmp_path / "adapter"
    wild = {"learning_rate": 1e30, "warmup_ratio": 0.0, "epochs": 9, "max_steps": 8}
    with pytest.raises(UsageError) as caught:
        train_sft(small(SFTOptions, tiny, rows=rows, out=out, **wild))
    step = int(re.search(r"of step (\d+) of 8 is not finite", str(caught.value))[1])
    assert "--learning-rate below 1e+30" in str(caught.value) and "dtype" not in str(caught.value)
    assert not out.exists()
    kept = tmp_path / "adapter.stopped"
    assert str(kept) in str(caught.value) and "\n" not in str(caught.value)
    curve = list(csv.DictReader((kept / "curve.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in curve] == list(range(1, step))
    assert json.loads((kept / "training.json").read_text())["steps"] == step - 1
    from safetensors.torch import load_file

    weights = load_file(kept / "adapter_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    # The folder is free, and the next attempt may be stopped too.
    with pytest.raises(UsageError, match="is not finite"):
        train_sft(small(SFTOptions, tiny, rows=rows, out=out, **wild, seed=1))
    train_sft(small(SFTOptions, tiny, rows=rows, out=out, max_steps=1))
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "adapter", kept.name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_computes_no_numbers_is_refused_at_the_first_step(tiny, tmp_path, dtype):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][8:] = float("nan")  # loading tries the first few tokens
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run = run_folder(tmp_path / "run", toy_rows())
    tries = "--dtype float32" if dtype == "bfloat16" else "another --model"
    with pytest.raises(UsageError, match=f"of step 1 of 4 is not finite: try {tries}"):
        train_kto(small(KTOOptions, broken, run=run, dtype=dtype))
    assert [path.name for path in run.iterdir()] == ["kto.jsonl"]


def test_an_infinite_loss_is_not_smoothed_away(tiny, tmp_path, monkeypatch):
    from trl import SFTTrainer

    compute = SFTTrainer.compute_loss
    seen = []

    def compute_loss(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        seen.append(loss)
        return loss + (float("inf") if len(seen) > 4 else 0.0)  # its gradient stays finite

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    rows, out = lines(tmp_path), tmp_path / "adapter"
    with pytest.raises(UsageError, match="the loss of step 3 of 4 is not finite"):
        train_sft(small(SFTOptions, tiny, rows=rows, out=out, epochs=9))
    assert (tmp_path / "adapter.stopped" / "curve.csv").read_text().count("\n") == 3


def test_room_is_taken_before_the_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("training.trainer._run", lambda trainer: pytest.fail("it trained"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = lines(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"cannot write the adapter to .*MB: File too large"):
            train_sft(small(SFTOptions, tiny, rows=rows, out=tmp_path / "adapter"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_cannot_be_saved_is_saved_elsewhere(tiny, tmp_path, monkeypatch):
    import training.trainer

    real, spare = training.trainer._run, tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))

    def removed(trainer):
        trained = real(trainer)
        shutil.rmtree(trainer.args.output_dir)
        return trained

    monkeypatch.setattr(training.trainer, "_run", removed)
    with pytest.raises(UsageError, match="cannot write the adapter to .*; it is in ") as caught:
        train_sft(small(SFTOptions, tiny, rows=lines(tmp_path), out=tmp_path / "adapter"))
    (kept,) = spare.iterdir()
    assert str(caught.value).endswith(str(kept))
    assert (kept / "training.json").exists()
    load(tiny, kept)


@pytest.mark.parametrize("kind", ["file", "full", "under a file"])
def test_folders_that_cannot_be_made_are_refused_before_a_model_is_loaded(
    tmp_path, monkeypatch, kind
):
    rows, out = lines(tmp_path), tmp_path / "out"
    if kind == "full":
        out.mkdir()
    (out / "mine" if kind == "full" else out).write_text("")
    monkeypatch.setattr("training.policy.load_policy", lambda options: pytest.fail("it loaded"))
    if kind == "under a file":
        out = out / "adapter"
    with pytest.raises(UsageError, match="cannot write|holds something else"):
        train_sft(small(SFTOptions, "model", rows=rows, out=out))


def test_a_second_training_into_the_same_folder_is_refused_at_once(tiny, tmp_path, monkeypatch):
    import training.trainer

    rows, out = lines(tmp_path), tmp_path / "adapter"
    real, refused = training.trainer._run, []

    def meanwhile(trainer):
        with pytest.raises(UsageError, match="another training is writing") as caught:
            train_sft(small(SFTOptions, "no model", rows=rows, out=out, seed=1))
        refused.append(caught)
        return real(trainer)

    monkeypatch.setattr(training.trainer, "_run", meanwhile)
    train_sft(small(SFTOptions, tiny, rows=rows, out=out, max_steps=1))
    assert refused
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "adapter"}
    assert not (out / ".lock").exists()


def test_what_a_kill_leaves_goes_with_the_next_training(tiny, tmp_path):
    rows, out = lines(tmp_path), tmp_path / "adapter"
    code = (
        "import os, sys; from pathlib import Path; from training.output import staged\n"
        "with staged(Path(sys.argv[1]), {}) as stage:\n"
        "    (stage / 'deep').mkdir(); (stage / 'deep' / 'file').touch(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(out)])
    assert killed.returncode == -9
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", ".adapter.part"}
    train_sft(small(SFTOptions, tiny, rows=rows, out=out, max_steps=1))
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "adapter"}


def test_what_has_been_put_there_meanwhile_stays_and_so_does_the_adapter(tmp_path):
    from training.output import staged

    out = tmp_path / "adapter"
    with pytest.raises(UsageError, match="cannot write .*; what it had learned is in") as caught:  # noqa: SIM117
        with staged(out, {}) as stage:
            (stage / "trained").touch()
            out.mkdir()
            (out / "mine").touch()
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert [path.name for path in kept.iterdir()] == ["trained"]


def test_a_finished_warm_start_keeps_its_dialogues(tmp_path, monkeypatch):
    from training import warmstart

    def quick(options):
        options.out.mkdir()
        rows = hashlib.sha256(options.rows.read_bytes()).hexdigest()
        record = {"kind": "sft", "options": options.to_json(), "rows_sha256": rows}
        (options.out / "training.json").write_text(json.dumps(record))
        return record

    monkeypatch.setattr(warmstart, "train_sft", quick)
    options = warmstart.WarmstartOptions(out=tmp_path / "warm", dialogues=2)
    warmstart.warmstart(options)
    dialogues = (options.out / "dialogues.jsonl").read_bytes()
    for change in ({"seed": 1}, {"dialogues": 3}):
        with pytest.raises(UsageError, match="a training with other"):
            warmstart.warmstart(replace(options, **change))
        assert (options.out / "dialogues.jsonl").read_bytes() == dialogues
    assert {path.name for path in options.out.iterdir()} == {"adapter", "dialogues.jsonl"}
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        warmstart.warmstart(replace(options, out=tmp_path / "file"))


# Command line


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch": 3}, "multiple of device_batch"),
        ({"device_batch": 1}, "at least 2"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
        ({"max_steps": 0}, "max_steps"),
        ({"lora_r": 0}, "lora_r"),
        ({"max_length": 5}, "no rows are left"),
    ],
)
def test_options_out_of_range_are_refused(tiny, tmp_path, changes, complaint):
    run = run_folder(tmp_path / "run", toy_rows())
    with pytest.raises(UsageError, match=complaint):
        train_kto(small(KTOOptions, tiny, run=run, **changes))
    assert not (run / "adapter").exists()


def test_the_model_that_played_is_trained_and_no_other(tiny, warm, tmp_path):
    """Whatever model the last command was about."""

    def harvested(name, adapters=None, **options):
        run = run_folder(tmp_path / name, toy_rows())
        config = {"options": {"agent": "tool_calling", **options}, "adapters": adapters or {}}
        write_sealed(run / "config.json", config)
        return run

    mine = harvested("mine", model=str(tiny), backend="transformers")
    record = train_kto(small(KTOOptions, "auto", run=mine, max_steps=1))
    assert record["options"]["model"] == str(tiny)
    near = Path(os.path.relpath(tiny))
    assert train_kto(small(KTOOptions, near, run=mine, max_steps=1)) == record
    with pytest.raises(UsageError, match=r"was played by \S*tiny\S*, and its rows [^\n]*$"):
        train_kto(small(KTOOptions, "bundled", run=mine, out=tmp_path / "other"))
    old = {"agent_adapter": "0" * 64}
    again = harvested("again", old, model=str(warm), backend="transformers")
    with pytest.raises(UsageError, match="is another model than when it played"):
        train_kto(small(KTOOptions, "auto", run=again))
    hosted = harvested("hosted", model="gpt-4o", backend="openai")
    scripted = harvested("scripted", agent="expert")
    for run, who in ((hosted, "gpt-4o"), (scripted, "expert")):
        with pytest.raises(UsageError, match=f"^{who} played [^\n]* cannot be trained"):
            train_kto(small(KTOOptions, "auto", run=run))
    assert train_kto(small(KTOOptions, tiny, run=hosted, max_steps=1))["steps"] == 1


def test_rows_that_are_not_as_their_harvest_wrote_them_are_refused(tmp_path):
    run = run_folder(tmp_path / "run", toy_rows())
    write_sealed(run / "summary.json", {ROW_FILES: {"kto.jsonl": file_digest(run / "kto.jsonl")}})
    whole = (run / "kto.jsonl").read_bytes()
    assert len(read_rows(run / "kto.jsonl", "kto")) == len(toy_rows())
    (run / "kto.jsonl").write_bytes(whole.replace(b"true", b"false", 1))
    with pytest.raises(UsageError, match=r"is not as its harvest wrote it: .* rows \S*run makes"):
        read_rows(run / "kto.jsonl", "kto")
    tools = '"' + "[" * 100_000 + '"'
    (tmp_path / "kto.jsonl").write_bytes(whole[:-2] + b',"tools":' + tools.encode() + b"}\n")
    with pytest.raises(UsageError, match=r"kto.jsonl, line \d+: it is nested too deeply$"):
        read_rows(tmp_path / "kto.jsonl", "kto")


def test_presets_fit_the_options():
    import yaml

    import training

    preset = yaml.safe_load((Path(training.__file__).parent / "presets/paper-kto.yaml").read_text())
    options = KTOOptions(
        run=Path("run"), **{**preset, "learning_rate": float(preset["learning_rate"])}
    )
    options.check()
    assert (options.learning_rate, options.undesirable_weight) == (5e-7, 2.71)


def test_mistakes_end_with_one_line_and_code_2(tmp_path):
    (tmp_path / "bad.yaml").write_text("lora_rank: 8\n")
    for words, complaint in (
        (["kto", "--run", str(tmp_path)], "cannot read"),
        (["sft", "--config", str(tmp_path / "bad.yaml")], "unknown option 'lora_rank'"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "training", *words], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert complaint in done.stderr
