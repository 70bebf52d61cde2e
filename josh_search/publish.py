"""Handing on a run's rows: to the Hugging Face hub, or to a service that fine-tunes for its users.

``publish`` uploads the row files as a dataset with a card; ``export`` writes them in the format of
OpenAI's fine-tuning, which other services read too. Both need nothing but the run's folder.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agents.customers import FORMS
from agents.options import SCRIPTS
from agents.tool_formats import in_protocol
from josh_search.rows import KINDS, Row
from toolwoz_gym.cli import check_choices
from toolwoz_gym.records import (
    check_rows,
    read_config,
    read_jsonl,
    read_sealed,
    write_jsonl,
)
from toolwoz_gym.types import Usage, UsageError, one_line

Files: TypeAlias = dict[str, Path | str]
"""What a dataset consists of: by name, the file to copy or the text to write."""

CONTENTS = {
    "kto": "single messages, good or bad: `prompt`, `completion`, `label`",
    "sft": "the good messages: `prompt`, `completion`",
    "dpo": "pairs of a good and a bad message at one prompt: `prompt`, `chosen`, `rejected`",
}

STRATEGIES = {
    "go_explore": "A search that goes on from the best place it knows (`go_explore`, after Ecoffet "
    "et al. 2021, Nature 590:580)",
    "josh": "JOSH ([arXiv 2409.04617](https://arxiv.org/abs/2409.04617))",
    "chains": "A series of independent tries (`chains`)",
}
"""How a card calls what has played."""

_OWN_TERMS = "whose licence or terms of use may say what its output may be used for"

FEWEST = 10
"""OpenAI takes no file of fewer examples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishOptions:
    """Publish the rows of a run as a dataset, with a card, on the Hugging Face hub."""

    run: Path = Path("runs/demo")
    """Folder of the run."""
    to: str | None = None
    """Name of the dataset on the hub: user/name. It is made if there is none."""
    private: bool = False
    """Make the dataset one that only its owner sees."""
    out: Path | None = None
    """New folder to write all that would be uploaded into. Without --to nothing is uploaded."""
    licence: str | None = None
    """The dataset's licence as the hub names it. Left out: mit, or unknown where the model that
    wrote the messages may have terms of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Write the rows of a run in OpenAI's format, which hosted fine-tuning services read."""

    run: Path = Path("runs/demo")
    """Folder of the run."""
    kind: Literal["sft", "dpo"] = "sft"
    """sft: dialogues to imitate; dpo: pairs of which one is preferred."""
    out: Path = Path("openai.jsonl")
    """File to write."""

    def __post_init__(self) -> None:
        check_choices(self)


def publish(options: PublishOptions) -> None:
    """Write the dataset into a folder, upload it, or both.

    Raises:
        UsageError: The run has no rows, the folder is not new, or the hub refuses.
    """
    if options.to is None and options.out is None:
        raise UsageError("say where to: --to user/name uploads, --out FOLDER only writes")
    files = dataset_files(options.run, options.licence)
    if options.out is not None:
        _write(options.out, files)
        print(f"look at {options.out / 'README.md'}")
    if options.to is not None:
        print(push_to_hub(files, options.to, private=options.private))


def export(options: ExportOptions) -> None:
    """Write a file for hosted fine-tuning.

    Raises:
        UsageError: The run has no row files, or the file cannot be written.
    """
    file = options.run / f"{options.kind}.jsonl"
    check_rows(file)
    rows = read_jsonl(file)
    examples = openai_sft(rows) if options.kind == "sft" else openai_dpo(rows)
    dropped: Counter[str] = Counter()
    count = write_jsonl(options.out, _spoken(examples, dropped))
    print(f"{options.out}: {count:,} examples")
    for reason, number in dropped.items():
        print(f"dropped: {number:,} {reason}")
    if count < FEWEST:
        print(f"OpenAI wants at least {FEWEST}: harvest more dialogues")


def dataset_files(run: Path, licence: str | None) -> Files:
    """Return the files of a run's dataset: those with rows, and the card.

    Args:
        run: The run's folder.
        licence: As in :class:`PublishOptions`.

    Raises:
        UsageError: The run is not finished, or has no rows.
    """
    missing = [run / name for name in ("kto.jsonl", "summary.json") if not (run / name).exists()]
    if missing:
        raise UsageError(
            f"there is no {missing[0]}: publish the folder of a finished run, or have "
            f"what it needs made of the trees that there are: python -m josh_search rows {run}"
        )
    config, summary = read_config(run), read_sealed(run / "summary.json")
    rows = summary["rows"]
    counts = {"kto": sum(rows["kto"].values()), "sft": rows["sft"], "dpo": rows["dpo"]}
    kinds = [kind for kind in KINDS if counts[kind]]
    if not kinds:
        raise UsageError(f"{run} has no rows to publish: harvest more dialogues")
    files: Files = {f"{kind}.jsonl": run / f"{kind}.jsonl" for kind in kinds}
    for kind in kinds:
        check_rows(run / f"{kind}.jsonl")
    files["README.md"] = dataset_card(config, summary, kinds, licence)
    return files


def dataset_card(
    config: Mapping[str, Any], summary: Mapping[str, Any], kinds: list[str], licence: str | None
) -> str:
    """Write the card of a dataset: how it was made, what is in it, and what it may be used for.

    Args:
        config: The run's ``config.json``.
        summary: The run's ``summary.json``.
        kinds: The row files that the dataset has, out of :data:`~josh_search.rows.KINDS`.
        licence: As in :class:`PublishOptions`.
    """
    import yaml

    options, rows = config["options"], summary["rows"]
    writer, terms = _writer(options)
    customer, customers_terms = _customer(options)
    if licence is None:
        licence = "mit" if terms and customers_terms else "unknown"
    source = _source(options)
    front = {
        "license": licence,
        "language": ["en"],
        "task_categories": ["text-generation"],
        "tags": ["dialogue", "tool-use", options["strategy"], *kinds],
        "configs": [
            {"config_name": kind, "data_files": [{"split": "train", "path": f"{kind}.jsonl"}]}
            for kind in kinds
        ],
    }
    counted = {
        "kto": f"{rows['kto']['good']:,} good, {rows['kto']['bad']:,} bad",
        "sft": f"{rows['sft']:,}",
        "dpo": f"{rows['dpo']:,}",
    }
    tokens = {role: _tokens(usage) for role, usage in summary["usage"].items()}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# Dialogues that earned their reward: {options['env']}",
        f"Messages of a dialogue agent that uses tools, on {source}. "
        f"{STRATEGIES[options['strategy']]} played each task as a tree of dialogues; what led to "
        "the reward is good, what left that path at the same prompt is bad. "
        f"{writer} wrote the messages.",
        _table(
            ("configuration", "rows", "what a row is"),
            [(kind, counted[kind], CONTENTS[kind]) for kind in kinds],
        ),
        "`prompt` is the chat exactly as the model was shown it, and every completion is one "
        "message exactly as it was written. `task_id`, `tree` and `node` say where a row comes "
        "from.",
        "## How it was made",
        f"{summary['solved']:,} of {summary['finished']:,} tasks were solved, "
        f"{summary['goals_met']:,} of {summary['goals_total']:,} goals met, with "
        f"{tokens['agent']} tokens of the agent and {tokens['user']} of the customer.",
        _table(
            ("option", "value"),
            [(name, f"`{_public(value)}`") for name, value in options.items()],
        ),
        f"World: `{config['world']}`. Made with {_versions(config)}.",
        "## What was left out",
        _table(("how many", "what"), [(f"{n:,}", why) for why, n in rows["dropped"].items()])
        if rows["dropped"]
        else "Nothing.",
        "## Licence",
        f"`{licence}`. The tasks and what tools say come from {source}, under the MIT licence. The "
        f"messages were written by {writer}, {terms or _OWN_TERMS}; those of the customers by "
        f"{customer}, {customers_terms or _OWN_TERMS}.",
    ]
    return "\n\n".join(parts) + "\n"


def push_to_hub(files: Files, repo: str, *, private: bool) -> str:
    """Upload a dataset in one commit, and make its repository if there is none.

    Args:
        files: What to upload.
        repo: ``user/name``.
        private: Whether a new repository is seen by its owner only.

    Returns:
        Where the dataset is.

    Raises:
        UsageError: There is no token, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    if get_token() is None:
        raise UsageError("no Hugging Face token: set HF_TOKEN, or run hf auth login")
    hub = HfApi()
    operations = [
        CommitOperationAdd(name, source.encode() if isinstance(source, str) else source)
        for name, source in files.items()
    ]
    try:
        url = hub.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        hub.create_commit(repo, operations, commit_message="Add rows", repo_type="dataset")
    except (HTTPError, HFValidationError, ConnectionError) as error:
        raise UsageError(f"cannot publish {repo}: {one_line(error)}") from None
    return str(url)


def openai_sft(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Yield the good dialogues, each whole: ``{"messages": [...]}``.

    A dialogue is one example, not one for each of its messages: the service reads, and charges,
    every token once. All assistant messages are learned. Where two dialogues of a tree begin alike,
    the second has ``"weight": 0`` at what the first has taught, so that each row of ``sft.jsonl``
    is learned once here too.

    Args:
        rows: The lines of ``sft.jsonl``, where those of a tree are together.
    """
    for _, group in groupby(rows, key=lambda row: row["tree"]):
        of_tree = list(group)
        tools = _tools(of_tree[0])
        taught = [row["prompt"] + row["completion"] for row in of_tree]
        whole = [chat for chat in taught if not any(_goes_on(chat, other) for other in taught)]
        for chat in whole:
            messages = []
            for end, message in enumerate(chat, 1):
                if message["role"] != "assistant":
                    messages.append(message)
                elif chat[:end] in taught:
                    taught.remove(chat[:end])
                    messages.append(message)
                else:
                    messages.append({**message, "weight": 0})
            yield {"messages": [in_protocol(m) for m in messages], **tools}


def openai_dpo(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Yield the pairs: ``input``, ``preferred_output`` and ``non_preferred_output``.

    Args:
        rows: The lines of ``dpo.jsonl``.
    """
    for row in rows:
        yield {
            "input": {"messages": [in_protocol(m) for m in row["prompt"]], **_tools(row)},
            "preferred_output": [in_protocol(m) for m in row["chosen"]],
            "non_preferred_output": [in_protocol(m) for m in row["rejected"]],
        }


def _tools(row: Row) -> dict[str, Any]:
    """Return what an example says of the tools that the model was shown in its own format."""
    if "tools" not in row:
        return {}
    return {"tools": json.loads(row["tools"]), "parallel_tool_calls": False}


def _spoken(examples: Iterable[dict[str, Any]], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the examples without those in which a message is empty: services refuse them."""
    for example in examples:
        messages = example.get("messages") or [
            *example["input"]["messages"],
            *example["preferred_output"],
            *example["non_preferred_output"],
        ]
        if all(message["content"] is None or message["content"].strip() for message in messages):
            yield example
        else:
            dropped["examples with an empty message"] += 1


def _goes_on(chat: list[Any], other: list[Any]) -> bool:
    """Return whether ``other`` is ``chat`` and more."""
    return len(other) > len(chat) and other[: len(chat)] == chat


def _write(folder: Path, files: Files) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: choose a new folder")
        for name, source in files.items():
            if isinstance(source, str):
                (folder / name).write_text(source, "utf-8")
            else:
                shutil.copyfile(source, folder / name)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from None


def _tokens(usage: Mapping[str, Any]) -> str:
    known = Usage(**usage).tokens
    return "an unknown number of" if known is None else f"{known:,}"


def _source(options: Mapping[str, Any]) -> str:
    """Name the data that the tasks are from."""
    if options["env"].startswith("TauBench"):
        return f"τ-bench's {options['world']} desk"
    sources = {"builtin": "toolwoz-gym's generated city", "multiwoz": "MultiWOZ 2.1"}
    return sources.get(options["world"].partition(":")[0], " or ".join(sources.values()))


def _writer(options: Mapping[str, Any]) -> tuple[str, str | None]:
    """Name what wrote the messages, and say what its licence is where that is known."""
    if options["agent"] in SCRIPTS:
        return f"toolwoz-gym's scripted agent ({options['agent']})", "under the MIT licence"
    return _model(options["model"])


def _customer(options: Mapping[str, Any]) -> tuple[str, str | None]:
    """The same of the customers' words."""
    if options["user"] not in FORMS:
        return f"toolwoz-gym's customer ({options['user']})", "under the MIT licence"
    return _model(options["user_model"] or options["model"])


def _model(name: str) -> tuple[str, str | None]:
    if name in ("bundled", "bundled-base"):
        return f"SmolLM2-135M-Instruct ({name})", "a model under the Apache licence 2.0"
    return f"the model {_public(name)}", None


def _public(value: Any) -> Any:
    """Return an option's value without what is nobody's business: folders and addresses."""
    if isinstance(value, str) and "://" in value:
        return "(an address)"
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _versions(config: Mapping[str, Any]) -> str:
    made_with = config["made_with"]
    versions = [f"{name} {version}" for name, version in made_with["versions"].items()]
    commit = [f"commit {made_with['commit']}"] if made_with["commit"] else []
    return ", ".join(versions + commit)


def _table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    rows = [head, ("---",) * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
