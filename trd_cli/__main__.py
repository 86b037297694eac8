"""`python -m trd_cli`, for launchers that start modules."""

from trd_cli.cli import main

main()
