"""What `glimt.llm.LLM` is made of: both towers in one process, joined by queues, not sockets."""
