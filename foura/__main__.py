"""`python -m foura` is the `foura` command."""

from foura.children import leave_working_directory

leave_working_directory()

from foura.cli import main  # noqa: E402  (what it imports is not looked for in the working directory)

main()
