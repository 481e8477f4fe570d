"""Side-by-side measurements, each a script that prints a table and writes its result beside it."""

import vlm  # noqa: F401  # before torch, whose threads it sets up
