"""Measuring agents and the suite itself."""
