"""Policies of toolwoz-gym: agents behind language models, and scripted ones."""
