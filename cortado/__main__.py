"""``python -m cortado``: the command line."""

from cortado.tools.cli import main

main()
