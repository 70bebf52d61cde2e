"""Training policies on rows of dialogue: LoRA adapters by KTO and by supervised fine-tuning."""
