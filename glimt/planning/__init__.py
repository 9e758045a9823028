"""`glimt plan`: what fits on which GPUs, how fast each layout could be, how to serve it."""
