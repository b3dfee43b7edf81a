"""Experts: adapters for the regions of a datastore, trained before any prompt comes.

Imports ``ttft.retrieval`` and what that may import.
"""

from hullft_ops.ttft.experts.build import build_experts
from hullft_ops.ttft.experts.folder import Experts

__all__ = ["Experts", "build_experts"]
