"""Measuring agents and the suite itself."""

from toolwoz_gym.cli import require_ours

require_ours(__name__, "agents", "josh_search")
