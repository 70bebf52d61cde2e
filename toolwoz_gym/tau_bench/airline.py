"""The tools of τ-bench's airline desk."""

from __future__ import annotations

from collections.abc import Mapping

from toolwoz_gym.tau_bench.calling import Tool

TOOLS: Mapping[str, Tool] = {}
"""By name, in the order in which agents are offered them."""
