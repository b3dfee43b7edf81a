"""The same examples in every run, so that a failure is a change of the code's; no deadline, since
the machine may be busy. ``HYPOTHESIS_PROFILE=few`` takes fewer of them; ``search`` looks for new
ones, many more, and makes those that fail small."""

import os

from hypothesis import Phase, settings

settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
)
settings.register_profile("few", settings.get_profile("fixed"), max_examples=3)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
