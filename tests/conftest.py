"""Settings of every test: one torch thread, repeatable Hypothesis runs."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.manual_seed(0)
# Timing must not decide a test, and CI must not find on Tuesdays what it missed on Mondays.
settings.register_profile("glimt", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("glimt")
