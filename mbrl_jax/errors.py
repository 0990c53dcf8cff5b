"""The error of bad input, which also parts that import no JAX raise."""


class ConfigError(ValueError):
    """A setting that cannot work: the message names the field, its value and what would be right."""
