"""The learned world: the ensemble, its losses, its fitting."""
