"""A tick for what changes in a models folder, none for what does not matter, and an end when it is asked for."""

import sys
from threading import Event, Thread

import pytest

from engine.errors import BadSettings
from engine.registry.watching import watch

SOON_S = 60


class Watcher:
    """The watching, in a thread, as whoever starts the engine runs it."""

    def __init__(self, folder):
        self.stop, self.ticked, self.ticks = Event(), Event(), 0
        self.thread = Thread(target=self.run, args=[watch(folder, self.stop)], daemon=True)
        self.thread.start()

    def run(self, ticks):
        for _ in ticks:
            self.ticks += 1
            self.ticked.set()

    def tick(self):
        """Wait for the next one."""
        assert self.ticked.wait(SOON_S)
        self.ticked.clear()


@pytest.fixture
def watcher(tmp_path):
    watcher = Watcher(tmp_path)
    watcher.tick()  # the watching has begun
    yield watcher
    watcher.stop.set()
    watcher.thread.join(SOON_S)
    assert not watcher.thread.is_alive()


def test_a_file_that_comes_changes_moves_or_goes_is_a_tick(tmp_path, watcher):
    path = tmp_path / "sub" / "a.gguf"
    for change in (
        path.parent.mkdir,
        path.touch,
        lambda: path.write_bytes(b"GGUF"),
        lambda: path.rename(tmp_path / "b.gguf"),
        (tmp_path / "b.gguf").unlink,
    ):
        change()
        watcher.tick()


def test_changes_at_one_time_are_one_tick(tmp_path, watcher):
    for number in range(100):
        (tmp_path / f"{number}.gguf").touch()
    watcher.tick()
    watcher.ticked.wait(0.5)
    assert watcher.ticks <= 3  # the first, and seldom two for the files where the machine is slow


def test_hidden_files_and_downloads_under_way_are_no_tick_but_their_end_is(tmp_path, watcher):
    (tmp_path / ".hidden").touch()
    part = tmp_path / "a.gguf.part"
    part.write_bytes(b"GGUF")
    assert not watcher.ticked.wait(0.5)
    part.rename(tmp_path / "a.gguf")
    watcher.tick()


def test_the_end_comes_soon_also_when_nothing_happens(tmp_path):
    watcher = Watcher(tmp_path)
    watcher.tick()
    watcher.stop.set()
    watcher.thread.join(SOON_S)
    assert not watcher.thread.is_alive()
    assert watcher.ticks == 1


def test_without_watchfiles_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(BadSettings, match=r"needs watchfiles: pip install 'modelyard\[watch\]'$"):
        watch(tmp_path, Event())


def test_a_folder_that_is_not_there_is_a_setting_to_mend(tmp_path):
    with pytest.raises(BadSettings, match="must be a folder that exists"):
        watch(tmp_path / "nowhere", Event())
