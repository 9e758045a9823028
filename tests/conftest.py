"""Settings of every test: one torch thread, repeatable Hypothesis runs."""

import signal

import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.manual_seed(0)
# Timing must not decide a test, and CI must not find on Tuesdays what it missed on Mondays.
settings.register_profile("glimt", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("glimt")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, a shell's child ignores Ctrl-C, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
