"""Which experts tokens choose, and on which GPUs experts lie: arithmetic, files and a command."""
