"""`python -m foura` is the `foura` command."""

from foura.cli import main

main()
