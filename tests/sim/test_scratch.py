"""Folders of a run: there while it is, only where KV is real, and never in the place of one that was named."""

from pathlib import Path

from sim.config import read
from sim.scratch import is_real, temporary_stores

LINES = ["scenario=steady", "tiers=five"]


def test_tiers_of_files_get_folders_for_as_long_as_the_run_takes():
    engine = read([*LINES, "executor=torch"]).engine
    with temporary_stores(engine) as given:
        folders = [Path(given.cache.ssd.path), Path(given.cache.network.path)]
        assert all(folder.is_dir() for folder in folders)
        assert given.cache.cloud is None
        assert list(given.cache.tiers) == ["gpu", "ram", "ssd", "network"]
    assert not any(folder.exists() for folder in folders)
    assert engine.cache.ssd.path is None


def test_what_was_named_stays_as_it_is(tmp_path):
    named = [f"tiers.ssd.path={tmp_path}", "tiers.network=null", "tiers.cloud.url=s3://kv/blocks"]
    engine = read([*LINES, "executor=torch", *named]).engine
    with temporary_stores(engine) as given:
        assert given.cache.ssd.path == str(tmp_path)
        assert given.cache.network is None
        assert given.cache.cloud.url == "s3://kv/blocks"
    assert tmp_path.is_dir()


def test_sizes_alone_need_no_folder():
    engine = read([*LINES, "executor=roofline"]).engine
    assert not is_real(engine)
    with temporary_stores(engine) as given:
        assert given is engine
