"""Policies of saved runs, for whoever plays or ships them."""
