"""A small trace of our own in the Azure format: generated in the style of its conversations, no copy.

`python -m sim.traffic.sample out.csv.gz --requests 200 --seed 1`
"""

import argparse
import gzip
import sys
from collections.abc import Iterator, Sequence
from math import exp, isfinite
from pathlib import Path
from typing import NoReturn

import numpy as np

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from engine.settings import require
from sim.early import begin
from sim.streams import stream
from sim.traffic.azure import HEADER
from sim.traffic.synthetic import log_normal_tokens
from sim.traffic.trace import Lengths
from sim.traffic.workload import MAX_REQUESTS, YEAR_S, whole

START = np.datetime64("2025-01-01T00:00:00", "ns")
TICK_NS = 100  # the format's seven digits of a second
# fits to the conversation trace: shape of the Gamma gaps; mean and sigma of the log, and longest length
GAP_SHAPE = 0.87
PROMPT = (6.63, 0.99, 14_050)
OUTPUT = (5.02, 0.86, 1_000)


def write_sample(path: Path, requests: int, rate: float, seed: int) -> None:
    """Write `requests` rows at `rate` a second, as gzip when the name ends in .gz; the same bytes each time.

    Raises BadSettings for a number that cannot be and OSError when the file cannot be written.
    """
    whole("requests", requests, 1, MAX_REQUESTS)
    least = requests / YEAR_S
    require("rate", rate, isfinite(rate) and rate >= least, f"a number of at least {least:g}")
    whole("seed", seed, 0, 2**63)
    with path.open("wb") as file:
        if path.suffix != ".gz":
            file.writelines(_rows(requests, rate, seed))
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            packed.writelines(_rows(requests, rate, seed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sample that the command line asks for. Exits with 2 and one sentence when that cannot be."""
    parser = _Parser(prog="python -m sim.traffic.sample", description=__doc__)
    parser.add_argument("path", type=Path, help="the file to write; .gz packs it")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5.5, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    try:
        write_sample(asked.path, asked.requests, asked.rate, asked.seed)
    except BadSettings as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{asked.path} cannot be written: {error.strerror}")
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that complains in one sentence, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}\n")


def _rows(requests: int, rate: float, seed: int) -> Iterator[bytes]:
    gaps_s = stream(seed, "arrivals").standard_gamma(GAP_SHAPE, requests) / (GAP_SHAPE * rate)
    ticks = np.rint(np.cumsum(gaps_s) * (NS_PER_S / TICK_NS)).astype(np.int64)
    prompts = _lengths(seed, "prompt_tokens", requests, *PROMPT)
    outputs = _lengths(seed, "output_tokens", requests, *OUTPUT)
    yield HEADER + b"\n"
    for tick, prompt, output in zip(ticks, prompts, outputs, strict=True):
        stamp = str(START + np.timedelta64(int(tick) * TICK_NS, "ns"))  # 2025-01-01T00:00:00.123456700
        yield f"{stamp[:10]} {stamp[11:27]},{prompt},{output}\n".encode()


def _lengths(seed: int, name: str, count: int, mu: float, sigma: float, most: int) -> Lengths:
    return log_normal_tokens(stream(seed, name), count, exp(mu), sigma, 1, most)


if __name__ == "__main__":
    begin()
    sys.exit(main())
