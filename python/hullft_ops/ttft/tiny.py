"""The tiny language model that ships with the package."""

from pathlib import Path

# The paper's rate suits models of GPT-2's size. The tiny model takes larger steps.
PAPER_LR = 5e-5
TINY_LM_LR = 2e-4


def default_lr(model: str | None) -> float:
    """The default learning rate for a model; ``model`` is None for the tiny one."""
    return TINY_LM_LR if model is None else PAPER_LR


def tiny_lm_path() -> Path:
    """The directory of the tiny model, for ``AutoModelForCausalLM.from_pretrained``.

    The weights are stored in float16. The model's configuration has them loaded in float32.
    FileNotFoundError if the package was installed without its data.
    """
    directory = Path(__file__).with_name("tiny_lm")
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(f"tiny_lm_path: no model.safetensors in {directory}")
    return directory
