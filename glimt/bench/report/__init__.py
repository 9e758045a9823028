"""What people and programs read: table, JSON, HTML, Markdown, CSV, live progress."""
