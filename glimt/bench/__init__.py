"""The benchmark client: loads any OpenAI-compatible server and says how it did."""
