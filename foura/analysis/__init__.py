"""Pure functions on numbers: nothing here imports the rest of the package."""
