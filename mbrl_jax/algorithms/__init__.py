"""Training loops, one to a file, each readable from top to bottom like the method it implements."""
