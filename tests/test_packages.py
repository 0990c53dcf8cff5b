import importlib.metadata
import json

from mbrl_jax import packages
from mbrl_jax.packages import version_of
from mbrl_jax.report import page
from mbrl_jax.runs import folder, results
from mbrl_jax.runs.folder import Asked


def test_an_installed_package_has_its_version():
    assert version_of("jax") == importlib.metadata.version("jax")


def test_where_the_metadata_are_missing_every_version_that_is_written_is_unknown(monkeypatch, tiny, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert version_of("mbrl-jax") == "unknown"
    versions = packages.versions(("jax",))
    assert (versions["mbrl-jax"], versions["jax"]) == ("unknown", "unknown")
    folder.begin(tmp_path, Asked(tiny, 1, 0, False), "")
    assert json.loads((tmp_path / "run.json").read_text())["versions"]["mbrl-jax"] == "unknown"
    assert results.written_by({}) == "it was written by mbrl-jax another version, this is unknown"
    for section in ("overview", "returns", "model", "imagination", "animation"):
        monkeypatch.setattr(getattr(page, section), "section", lambda *_: "")
    monkeypatch.setattr(page.overview, "title", lambda runs: "none")
    assert "Written by mbrl_jax unknown." in page.render([])
