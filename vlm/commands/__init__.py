"""Programs for people: `python -m vlm COMMAND`. No stage imports them."""
