"""What it costs to know a models folder: at first, again when nothing changed, and among hostile files."""

from time import perf_counter_ns

import pytest
from gguf import GGUFReader

from engine.formats import open_checkpoint
from engine.registry.discovery import discover, rescan
from engine.stand_ins.full_size import write_reference
from tests.hostile_files import write_gguf, write_hostile

pytestmark = pytest.mark.benchmark(group="targeted")

DISCOVERY_LIMIT_MS = 100  # of the folder with the five reference models
READER_RATIO = 50  # GGUFReader's time for the header of Mistral 7B, in times of ours
RESCAN_RATIO = 5
MODELS = 1_000


def best_ms(operation, rounds):
    """The best of some rounds."""
    rounds_ms = []
    for _ in range(rounds):
        begun_ns = perf_counter_ns()
        operation()
        rounds_ms.append((perf_counter_ns() - begun_ns) / 1e6)
    return min(rounds_ms)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_reference(folder)
    return folder


def test_discovery_of_the_reference_models(measure, reference, benchmark):
    found = measure(lambda: discover(reference), calls=1, rounds=20)
    assert len(found.healthy) == len(found.found) == 5
    if benchmark.stats is not None:
        assert min(benchmark.stats.stats.data) * 1e3 < DISCOVERY_LIMIT_MS


def test_a_header_against_gguf_py(measure, reference, benchmark):
    """The vocabulary is what GGUFReader makes objects of, and ours steps over: 32,768 here, the least of the five."""
    (path,) = reference.rglob("Mistral*.gguf")
    theirs_ms = best_ms(lambda: GGUFReader(path), rounds=1)
    checkpoint = measure(lambda: open_checkpoint(path), calls=1, rounds=20)
    assert checkpoint.tensors
    if benchmark.stats is not None:
        benchmark.extra_info["ratio_of_gguf_py"] = theirs_ms / (min(benchmark.stats.stats.data) * 1e3)
        assert benchmark.extra_info["ratio_of_gguf_py"] > READER_RATIO


def test_rescan_of_a_thousand_models(measure, benchmark, tmp_path):
    """`each_us` is of one model that did not change."""
    for number in range(MODELS):
        write_gguf(tmp_path / f"family-{number % 30}" / f"{number}.gguf", f"m{number}")
    first_ms = best_ms(lambda: discover(tmp_path), rounds=3)
    found = discover(tmp_path)
    changes = measure(lambda: rescan(found), calls=1, rounds=20, units=MODELS)
    assert len(changes.unchanged) == MODELS
    if benchmark.stats is not None:
        benchmark.extra_info["ratio_of_first_scan"] = first_ms / (min(benchmark.stats.stats.data) * 1e3)
        assert benchmark.extra_info["ratio_of_first_scan"] > RESCAN_RATIO


def test_discovery_among_hostile_files(measure, tmp_path):
    """`each_us` is of one hostile file."""
    hostile = write_hostile(tmp_path)
    found = measure(lambda: discover(tmp_path), calls=1, rounds=10, units=len(hostile))
    assert len(found.unhealthy) == len(hostile)
