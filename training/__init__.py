"""Training policies on rows of dialogue: LoRA adapters by KTO and by supervised fine-tuning."""

from toolwoz_gym.cli import require_ours

require_ours(__name__, "agents")
