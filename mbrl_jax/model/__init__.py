"""The learned world: what a world model is, and the ensemble of dynamics models, its losses and how it is fitted."""
