"""The processes of a running server and their supervisor."""
