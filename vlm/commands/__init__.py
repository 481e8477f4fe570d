"""The commands of `python -m vlm`. No stage imports them."""
