"""Documents of every format, made by code: see `samples` for the list."""
