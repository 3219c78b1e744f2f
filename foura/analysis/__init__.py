"""Statistics and linear algebra as pure functions of numbers: nothing here imports the rest of the package."""
