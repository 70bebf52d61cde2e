"""JOSH: tree search for dialogues that earn the reward, and training rows from them."""

from toolwoz_gym.cli import require_ours

require_ours(__name__, "agents")
