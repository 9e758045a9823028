"""`python -m glimt` is the `glimt` command."""

from glimt.cli import main

main()
