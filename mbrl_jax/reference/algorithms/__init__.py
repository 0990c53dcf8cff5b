"""One file is one training loop, readable top to bottom."""
