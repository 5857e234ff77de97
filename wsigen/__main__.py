"""``python -m wsigen``: the command line, for torchrun and for machines without the console script."""

from wsigen.cli.main import main

main()
