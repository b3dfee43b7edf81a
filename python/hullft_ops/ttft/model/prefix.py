"""Tokens before a text: how many fit."""


def prefix_room(context: int, text: int, opening: int) -> int:
    """How many tokens may stand before a text.

    As many as leave room for the whole text. Before a text longer than half of the context they may
    take the other half, or a little less, because a window needs two tokens of the text.

    Args:
        context: tokens that the model reads at once.
        text: tokens of the text, its opening special tokens included.
        opening: how many those are. They stand before the prefix.
    """
    return max(0, min(max(context - text, context // 2 - opening), context - opening - 2))
