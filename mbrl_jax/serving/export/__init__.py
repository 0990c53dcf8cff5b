"""Writes policies and world models of saved runs as files that other runtimes read, with proof that they compute the same."""
