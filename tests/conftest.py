"""Fixtures that several test files use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.multiwoz import prepare_multiwoz, read_multiwoz

# The same examples on every run, and no test that fails because the machine is busy.
settings.register_profile("toolwoz", derandomize=True, deadline=None, database=None)
settings.load_profile("toolwoz")

# A shell starts what runs in its background deaf to Ctrl-C, and the commands that tests interrupt
# would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded oracles and real data: not part of the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        reason = f"the recorded oracles and the real data are not at {folder}"
        if os.environ.get("TOOLWOZ_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def multiwoz_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MultiWOZ's validation dialogues, prepared from the real archive."""
    folder = tmp_path_factory.mktemp("data") / "multiwoz"
    prepare_multiwoz(folder, shared / "data" / "MultiWOZ_2.1_val.zip")
    return folder


@pytest.fixture(scope="session")
def multiwoz(multiwoz_folder: Path) -> ToolWOZ:
    """The real data as ToolWOZ-v0."""
    return read_multiwoz(multiwoz_folder, version=0)


@pytest.fixture(scope="session")
def multiwoz_v1(multiwoz_folder: Path) -> ToolWOZ:
    """The real data as ToolWOZ-v1."""
    return read_multiwoz(multiwoz_folder, version=1)
