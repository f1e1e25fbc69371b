"""A pool of clients, as ServeGen publishes them: for each and each window a rate and a law of gaps, and lengths.

Two layouts. One CSV file of all rates with a header, and beside it JSON lines with a histogram of lengths for each
client; or a folder for each model with `chunk-N-trace.csv` (no header: start of the window in s, rate, CV, family,
shape, scale) and `chunk-N-dataset.json` (start of a window -> field -> "{value: share, ...}").

Published at github.com/alibaba/ServeGen; Xiang et al., "ServeGen", NSDI 2026.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.traffic.fields import BOM, BadField, at, json_object, measure, rows, shown, split, table, whole
from sim.traffic.lines import lines
from sim.traffic.trace import MAX_TOKENS, BadTrace

HEADER = ("model", "client_id", "window_start_s", "rate_rps", "iat_cv", "family", "shape", "scale")
FAMILIES = ("Gamma", "Weibull")
WINDOW_S = 600.0
MAX_RATE = 1e7
SHAPES = {"Gamma": (1e-4, 1e6), "Weibull": (0.05, 1e3)}
"""Of the gaps; those published are from .007 to 2,200, and from .15 to 3.3."""
MAX_TIME_S = 3e7
JSON_BYTES = 4 << 20  # of a line of lengths
DATASET_BYTES = 256 << 20  # of a whole file of lengths, which is one JSON object
CHUNK = re.compile(r"chunk-(\d+)-trace\.csv(\.gz)?")
IN, OUT = "input_tokens", "output_tokens"
LENGTH, SHARE = "a length of the histogram", "a share of the histogram"

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class Histogram:
    """Lengths that were seen, in rising order, and the share of those up to each."""

    tokens: Ids
    upto: Floats

    def mean(self) -> float:
        return float(np.dot(self.tokens, np.diff(self.upto, prepend=0.0)))


@dataclass(slots=True, kw_only=True)
class Lengths:
    """What a client asks for in the windows from `start_s` on."""

    start_s: float
    input: Histogram
    output: Histogram


@dataclass(slots=True, kw_only=True)
class Client:
    """A client's windows with a rate, in order: start, requests a second, CV as measured, family and shape of gaps.

    `lengths` are in order of their start; empty where none were published.
    """

    model: str
    name: str
    start_s: "array[float]" = field(default_factory=lambda: array("d"))
    rate: "array[float]" = field(default_factory=lambda: array("d"))
    cv: "array[float]" = field(default_factory=lambda: array("d"))
    family: "array[int]" = field(default_factory=lambda: array("b"))
    shape: "array[float]" = field(default_factory=lambda: array("d"))
    lengths: list[Lengths] = field(default_factory=list)

    @property
    def tenant(self) -> str:
        return f"{self.model}/c{self.name}"

    def lengths_at(self, time_s: float) -> Lengths | None:
        """The lengths of that time: of the last window that has begun with any, else of the first."""
        begun = [one for one in self.lengths if one.start_s <= time_s]
        return begun[-1] if begun else (self.lengths[0] if self.lengths else None)


@dataclass(slots=True, kw_only=True)
class Pool:
    """The clients of all models in the order in which they appear. `idle_rows` are windows without a rate."""

    source: str
    clients: list[Client]
    window_s: float = WINDOW_S
    idle_rows: int = 0

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(client.model for client in self.clients))

    @property
    def end_s(self) -> float:
        """Where the last window ends."""
        return max(client.start_s[-1] for client in self.clients) + self.window_s


def is_row(values: Sequence[str]) -> bool:
    """Whether these are the fields of a window without a header."""
    if len(values) != len(HEADER) - 2 or values[3] not in (*FAMILIES, ""):
        return False
    return (
        re.fullmatch(r"[0-9.]+", values[0]) is not None
        and re.fullmatch(r"[0-9.eE+-]+", values[1]) is not None
    )


def read(path: Path, lengths: Path | None) -> Pool:
    """A pool from its file of rates, or its folder. Raises BadTrace with the file and line."""
    pool = _folders(path) if path.is_dir() else _one_file(path, lengths or _beside(path))
    pool.clients = [client for client in pool.clients if len(client.start_s)]
    if not pool.clients:
        raise BadTrace(f"{path} must have a window with a rate above zero, but has none")
    return pool


def _beside(path: Path) -> Path | None:
    """The file of lengths that goes with a file of rates by its name; None where there is none."""
    name = path.name.replace("rates", "lengths")
    for suffix in ("", ".gz"):
        other = path.with_name(name.removesuffix(".gz").removesuffix(".csv") + ".jsonl" + suffix)
        if "rates" in path.name and other.is_file():
            return other
    return None


def _one_file(path: Path, lengths: Path | None) -> Pool:
    clients: dict[tuple[str, str], Client] = {}
    pool = Pool(source=path.name, clients=[])
    with closing(lines(path)) as source:
        first = next(source, b"")
    with at(path, 1):
        bare = is_row(split(first.removeprefix(BOM.encode())))
    windows = _bare_rows(path) if bare else table(path, HEADER)
    for line, (model, client_id, *window) in windows:
        with_rate = clients.get((model, client_id))
        if with_rate is None:
            with_rate = clients[model, client_id] = Client(model=model, name=client_id)
        _add(path, line, pool, with_rate, window)
    pool.clients = list(clients.values())
    if lengths is not None:
        _read_lengths(lengths, clients)
    elif bare and (dataset := _dataset(path)) is not None:
        pool.clients[0].lengths = _read_dataset(dataset)
    return pool


def _folders(folder: Path) -> Pool:
    """Each folder with chunks is a model, called like it."""
    pool = Pool(source=folder.name, clients=[])
    for inner in (folder, *sorted(one for one in folder.iterdir() if one.is_dir())):
        chunks = sorted(
            (int(match[1]), file) for file in inner.iterdir() if (match := CHUNK.fullmatch(file.name))
        )
        for number, file in chunks:
            client = Client(model=inner.name, name=str(number))
            for line, (_, _, *window) in _bare_rows(file):
                _add(file, line, pool, client, window)
            if (dataset := _dataset(file)) is not None:
                client.lengths = _read_dataset(dataset)
            pool.clients.append(client)
    if not pool.clients:
        raise BadTrace(
            f"{folder} has no chunk-N-trace.csv, neither in it nor in the folders in it, but must have some"
        )
    return pool


def _dataset(trace: Path) -> Path | None:
    """The file of lengths of a chunk; None where there is none."""
    stem = trace.name.removesuffix(".gz").removesuffix("-trace.csv")
    files = (trace.with_name(f"{stem}-dataset.json{suffix}") for suffix in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def _bare_rows(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """The rows of a chunk, with its model and number before them."""
    model, number = path.parent.resolve().name, (re.findall(r"\d+", path.name) or ["0"])[0]
    with closing(lines(path)) as source:
        for line, content in rows(path, source, 1):
            with at(path, line):
                values = split(content.removeprefix(BOM.encode()) if line == 1 else content)
                if len(values) != len(HEADER) - 2:
                    raise BadField(
                        f" has {len(values)} fields, but must have six: window_start_s,{','.join(HEADER[3:])}"
                    )
            yield line, (model, number, *values)


def _add(path: Path, line: int, pool: Pool, client: Client, window: Sequence[str]) -> None:
    """One window of a client; one at rate zero is only counted, and has no law."""
    try:
        found = _window(pool, client, window)
    except BadField as error:
        raise BadTrace(f"{path}, line {line}{error}") from error
    if found is None:
        pool.idle_rows += 1
        return
    start_s, rate, cv, family, shape = found
    client.start_s.append(start_s)
    client.rate.append(rate)
    client.cv.append(cv)
    client.family.append(family)
    client.shape.append(shape)


def _window(
    pool: Pool, client: Client, window: Sequence[str]
) -> tuple[float, float, float, int, float] | None:
    start, rate, cv, family, shape, scale = window
    start_s = measure("column window_start_s", start, 0, MAX_TIME_S)
    requests_a_second = measure("column rate_rps", rate or "0", 0, MAX_RATE)
    if requests_a_second == 0:
        return None
    if family not in FAMILIES:
        allowed = "Gamma or Weibull where the rate is not 0"
        raise BadField(f", column family is {shown(family)}, but must be {allowed}")
    if len(client.start_s) and start_s < client.start_s[-1] + pool.window_s:
        raise BadField(
            f", column window_start_s is {start}, but must be at least {pool.window_s:g} s after the window before "
            f"it of that client, {client.start_s[-1]:g}"
        )
    measure("column scale", scale, 0, 1e12)
    measured = measure("column iat_cv", cv, 0, 1e9)
    gap_shape = measure("column shape", shape, *SHAPES[family])
    return start_s, requests_a_second, measured, FAMILIES.index(family), gap_shape


def _read_lengths(path: Path, clients: dict[tuple[str, str], Client]) -> None:
    """JSON lines: a client each, with its histograms, where these were published."""
    with closing(lines(path, JSON_BYTES, "workload.lengths")) as source:
        for line, content in rows(path, source, 1):
            with at(path, line):
                values = json_object(content.removeprefix(BOM.encode()) if line == 1 else content)
                client = clients.get((str(values.get("model")), str(values.get("client_id"))))
                whole(values, "window_start_s", 0, int(MAX_TIME_S))
                if IN not in values and OUT not in values:
                    continue
                found = _lengths(float(values["window_start_s"]), values)
            if client is not None:
                client.lengths.append(found)
    for client in clients.values():
        client.lengths.sort(key=lambda one: one.start_s)


def _read_dataset(path: Path) -> list[Lengths]:
    """The histograms of one client, by window. Fields beside those of tokens are left alone."""
    content = b"".join(_within(path)).removeprefix(BOM.encode())
    try:
        windows = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise BadTrace(f"{path} must be a JSON object of windows: {error}") from error
    if not isinstance(windows, dict):
        raise BadTrace(f"{path} is a JSON {type(windows).__name__}, but must be an object of windows")
    found = []
    for start, values in windows.items():
        try:
            found += _window_lengths(start, values)
        except BadField as error:
            raise BadTrace(f"{path}, window {start[:60]!r}{error}") from error
    return sorted(found, key=lambda one: one.start_s)


def _window_lengths(start: str, values: object) -> list[Lengths]:
    """The histograms of one window, where it has any."""
    start_s = measure("its start", start, 0, MAX_TIME_S)
    if not isinstance(values, dict):
        raise BadField(f" is {shown(values)}, but must be an object")
    if all(values.get(key) in (None, "", "{}") for key in (IN, OUT)):
        return []
    return [_lengths(start_s, values)]


def _within(path: Path) -> Iterator[bytes]:
    size = 0
    for line in lines(path, DATASET_BYTES):
        size += len(line)
        if size > DATASET_BYTES:
            raise BadTrace(f"{path} must be at most {DATASET_BYTES:,} bytes long")
        yield line


def _lengths(start_s: float, values: dict[str, Any]) -> Lengths:
    return Lengths(start_s=start_s, input=_histogram(values, IN), output=_histogram(values, OUT))


def _histogram(values: dict[str, Any], key: str) -> Histogram:
    """A histogram that is an object, or the text of one whose keys are numbers. Raises BadField."""
    given = values.get(key)
    pairs = given.items() if isinstance(given, dict) else _written(key, given)
    seen: dict[int, float] = {}
    for value, share in pairs:
        number = measure(LENGTH, value, 0, MAX_TOKENS)
        length = int(number)
        if number != length:
            raise BadField(f", {LENGTH} is {shown(value)}, but must be a whole number")
        seen[length] = seen.get(length, 0.0) + measure(SHARE, share, 0, 1e18)
    total = sum(seen.values())
    if not total > 0:
        raise BadField(f", key {key} must have a share above zero, but has none")
    tokens = np.array(sorted(seen), np.int64)
    upto = np.cumsum([seen[value] for value in tokens.tolist()])
    return Histogram(tokens=tokens, upto=upto / upto[-1])


def _written(key: str, given: object) -> Iterator[tuple[str, str]]:
    if not isinstance(given, str) or not (given.startswith("{") and given.endswith("}")):
        raise BadField(f", key {key} is {shown(given)}, but must be lengths and their shares")
    for pair in given[1:-1].split(","):
        value, colon, share = pair.partition(":")
        if not colon:
            raise BadField(f", key {key} has {shown(pair)}, but must have LENGTH: SHARE")
        yield value.strip().strip("'\""), share.strip()
