"""The learned world: an ensemble of dynamics models, its losses and how it is fitted."""
