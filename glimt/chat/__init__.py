"""`glimt chat`: a terminal chat with any OpenAI-compatible server, or with a local model."""
