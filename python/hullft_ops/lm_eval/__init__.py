"""The model ``hullft`` of EleutherAI's lm-evaluation-harness. Importing this registers it."""

from hullft_ops._extras import needed_by

with needed_by("hullft_ops.lm_eval", "lm-eval"):
    import lm_eval.models.huggingface  # noqa: F401 - our own modules may raise the same error

from hullft_ops.lm_eval.model import HullftLM

__all__ = ["HullftLM"]
