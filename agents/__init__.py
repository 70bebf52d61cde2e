"""Policies: agents behind language models, and scripted ones."""
