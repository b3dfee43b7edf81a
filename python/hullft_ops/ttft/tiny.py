"""The tiny language model that ships with the package."""

from pathlib import Path


def tiny_lm_path() -> Path:
    """The directory of the tiny model, for ``AutoModelForCausalLM.from_pretrained``.

    The weights are stored in float16. The model's configuration has them loaded in float32.
    FileNotFoundError if the package was installed without its data.
    """
    directory = Path(__file__).with_name("tiny_lm")
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(f"tiny_lm_path: no model.safetensors in {directory}")
    return directory
