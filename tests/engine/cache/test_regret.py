"""What others would have found: exact where everything is sampled, close where little is, and within bounds."""

import numpy as np
import pytest

from engine.cache import regret
from engine.cache.regret import Sample


def chains(count, seed=1):
    """Prompts of sessions that come back by Zipf's law, six blocks each; names as good as hashes."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 2_001)
    names = random.bytes(16 * 6 * 2_000)
    for number in random.choice(2_000, count, p=weights / weights.sum()):
        start = int(number) * 96
        yield [names[start + 16 * index : start + 16 * (index + 1)] for index in range(6)]


def test_nothing_asked_is_no_regret():
    assert Sample().regret(10) is None


def test_lru_and_the_clairvoyant_on_a_case_done_by_hand():
    sample = Sample(1.0)
    for name in "abcabd":
        sample.note([name.encode() * 16], 0)
    found = sample.regret(2)
    assert (found.lru, found.clairvoyant, found.sampled_blocks) == (0, 2 / 6, 6)


def test_what_we_found_is_told_over_the_same_blocks():
    sample = Sample(1.0)
    sample.note([bytes([number]) * 16 for number in range(4)], 3)
    assert sample.regret(10).ours == 0.75


def test_a_sample_tells_what_the_whole_would():
    whole, part = Sample(1.0), Sample(1 / 8)
    for keys in chains(5_000):
        whole.note(keys, 0)
        part.note(keys, 0)
    exact, estimate = whole.regret(2_000), part.regret(2_000)
    assert estimate.lru == pytest.approx(exact.lru, abs=0.05)
    assert estimate.clairvoyant == pytest.approx(exact.clairvoyant, abs=0.05)
    assert exact.lru < exact.clairvoyant
    assert estimate.sampled_blocks == pytest.approx(exact.sampled_blocks / 8, rel=0.2)


def test_names_are_sampled_alike_by_their_marks_and_one_by_one(monkeypatch):
    found = []
    for is_plain in (True, False):
        monkeypatch.setattr(regret, "IS_PLAIN", is_plain)
        sample = Sample(1 / 4)
        for keys in chains(500):
            sample.note(keys, 3)
        found.append(sample.regret(50))
    assert found[0] == found[1]
    assert found[0].sampled_blocks > 500


def test_the_sample_has_a_bound(monkeypatch):
    monkeypatch.setattr(regret, "MOST_TOUCHES", 5_000)
    sample = Sample(1.0)
    for keys in chains(3_000):
        sample.note(keys, 2)
    found = sample.regret(2_000)
    assert found.sampled_blocks <= 5_000
    assert found.rate < 0.5
    assert found.ours == pytest.approx(1 / 3, abs=0.1)
