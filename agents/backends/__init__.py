"""What runs a language model."""
