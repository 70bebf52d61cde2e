"""KTO: the policy learns from single messages marked good or bad (arXiv 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.adapters import adapter_digest
from agents.models import BUNDLED, resolve
from agents.options import SCRIPTS, SERVERS
from toolwoz_gym.progress import phase
from toolwoz_gym.records import file_digest, read_config
from toolwoz_gym.types import UsageError
from training.dataset import balance, read_rows, shuffle
from training.options import TrainOptions
from training.output import finished, staged

LEFT_OVER = "left over: KTO pairs every row with a neighbour"


@dataclass(frozen=True, kw_only=True, slots=True)
class KTOOptions(TrainOptions):
    """Train a LoRA adapter by KTO on the good and bad messages of a harvest."""

    run: Path
    """Folder of the harvest; its kto.jsonl is learned from."""
    model: str = "auto"
    """The policy to train, named as for a harvest; auto: the model that played it ("bundled" where
    the folder holds nothing but rows). No other: KTO learns from what the policy itself has said.
    Where a script or a server played, name the model that is to learn from it."""
    out: Path | None = None
    """Folder for the adapter and the records of its training; <run>/adapter when left out."""
    learning_rate: float = 1e-4
    """Peak learning rate. It warms up from 0 and falls along a cosine."""
    beta: float = 0.1
    """How strongly the policy is held to the reference: the policy as it was before training."""
    desirable_weight: float = 1.0
    """Weight of good rows in the loss."""
    undesirable_weight: float | None = None
    """Weight of bad rows in the loss. None balances them with the good ones."""

    @property
    def folder(self) -> Path:
        """Where the adapter goes."""
        return self.out or self.run / "adapter"


def _policy(options: KTOOptions) -> str:
    """Return the model to train: the one whose words the rows are, if that can be trained.

    Raises:
        UsageError: There is none, or it is not the one that was asked for.
    """
    run, asked = options.run, options.model
    if not (run / "config.json").exists():
        return BUNDLED if asked == "auto" else asked
    config = read_config(run)
    made_by = config["options"]
    if made_by.get("agent") in SCRIPTS or made_by.get("backend") in SERVERS:
        if asked == "auto":
            who = made_by["agent"] if made_by["agent"] in SCRIPTS else made_by["model"]
            raise UsageError(
                f"{who} played {run} and cannot be trained: name the --model that is to learn"
            )
        return asked
    played: str = made_by["model"]
    if asked not in ("auto", played) and Path(asked).resolve() != Path(played).resolve():
        raise UsageError(
            f"{run} was played by {played}, and its rows are {played}'s words: leave --model "
            f"{asked} out; or have it learn from them all the same, from a folder of its own with "
            "a copy of kto.jsonl"
        )
    before = config["adapters"].get("agent_adapter")
    adapter = resolve(played).adapter if before else None
    if before and not (adapter and adapter_digest(adapter) == before):
        raise UsageError(f"{played} is another model than when it played {run}: harvest anew")
    return played


def train_kto(options: KTOOptions) -> dict[str, Any]:
    """Train an adapter by KTO and write it with its records to ``options.folder``.

    The reference is the policy as it was before training: a frozen copy of the adapter it came
    with, or the plain model when the adapter is new. Both are TRL's doing.

    Returns:
        What ``training.json`` holds. The same training is not done twice: its record is returned.

    Raises:
        UsageError: An option or a row is wrong, there is too little to learn from, the model's chat
            template does not fit, or the folder holds something else.
    """
    options.check()
    if options.device_batch < 2:
        raise UsageError("device_batch must be at least 2: KTO pairs rows within a forward pass")
    file = options.run / "kto.jsonl"
    rows_sha256 = file_digest(file)
    options = replace(options, model=_policy(options))
    asked = {"kind": "kto", "options": options.to_json(), "rows_sha256": rows_sha256}
    if (done := finished(options.folder, asked)) is not None:
        return done
    rows = shuffle(read_rows(file, "kto"), options.seed)

    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    from training.encode import encode_all
    from training.policy import load_policy
    from training.trainer import arguments, quiet, train

    with staged(options.folder, asked) as stage, quiet():
        with phase(f"loading {options.model} and {len(rows):,} rows"):
            policy = load_policy(options)
            kept, dropped = encode_all(policy.tokenizer, rows, options.max_length)
        if len(kept) % options.device_batch == 1:
            # Alone in a forward pass it would be its own neighbour, and KTO's estimate of the drift
            # would be the row's own reward.
            kept.pop()
            dropped[LEFT_OVER] += 1
        if not kept:
            raise UsageError(f"{file}: no rows are left to learn from ({dict(dropped)})")
        counts = balance([encoded.row for encoded in kept])
        weight = options.undesirable_weight
        if weight is None:
            weight = counts.undesirable_weight(options.desirable_weight)
        trainer = KTOTrainer(
            model=policy.model,
            args=KTOConfig(
                **arguments(options, stage),
                beta=options.beta,
                desirable_weight=options.desirable_weight,
                undesirable_weight=weight,
            ),
            train_dataset=Dataset.from_list(
                [
                    {
                        "prompt": encoded.row.messages[: encoded.row.start],
                        "completion": encoded.row.messages[encoded.row.start :],
                        "label": encoded.row.label,
                        "tools": encoded.row.tools,
                    }
                    for encoded in kept
                ],
                on_mixed_types="use_json",  # calls differ in their arguments
            ),
            processing_class=policy.tokenizer,
            peft_config=policy.new_adapter,
        )
        return train(
            stage,
            trainer=trainer,
            policy=policy,
            options=options,
            record={
                **asked,
                "good": counts.good,
                "bad": counts.bad,
                "undesirable_weight": weight,
                "advice": counts.advice(options.desirable_weight, weight),
            },
            dropped=dropped,
        )
