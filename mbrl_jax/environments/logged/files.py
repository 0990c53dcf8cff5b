"""Files of logged transitions, by the end of their name: Parquet, Arrow, NPZ, HDF5; and Minari datasets."""

from mbrl_jax import trees
from mbrl_jax.config import ConfigError, expand
from mbrl_jax.environments.logged.arrays import hdf5, npz
from mbrl_jax.environments.logged.blocks import LogFile
from mbrl_jax.environments.logged.minari import MINARI, minari_dataset
from mbrl_jax.environments.logged.tables import arrow, parquet

KINDS = {".parquet": parquet, ".arrow": arrow, ".feather": arrow, ".npz": npz, ".hdf5": hdf5, ".h5": hdf5}


def open_log(path: str) -> LogFile:
    """Open a file of logged transitions, or a Minari dataset by ``minari:ID`` or its folder.

    Raises:
      ConfigError: there is none, it cannot be read, or a column is missing.

    """
    if path.startswith(MINARI):
        return minari_dataset(path)
    place = expand(path, "data")
    if place.is_dir():
        return minari_dataset(str(place))
    if not place.is_file():
        raise ConfigError(f"data: {path!r} does not fit; there is no such file")
    if place.suffix not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(f"data: {path!r} does not fit; its name must end in one of {known}, or be a Minari dataset's")
    try:
        return KINDS[place.suffix](str(place))
    except trees.DAMAGED as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"data: {path!r} cannot be read: {error}") from error
