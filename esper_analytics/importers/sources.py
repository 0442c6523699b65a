"""The files an import reads: named one by one, by folder or by pattern; plain or compressed."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from esper_analytics.errors import UsageError

BLOCK_BYTES = 8 * 2**20
_PIECE_BYTES = 2**16  # what is lost before the place where a compressed file is damaged is at most so much
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def find_sources(words: Sequence[str], endings: Sequence[str]) -> list[Path]:
    """The files that the words of SOURCE mean, in the order of the words, each once.

    Args:
        words: files (of any name), folders (all files below with one of the `endings`), or glob patterns of both.
        endings: how a file's name ends that is looked for in a folder, such as `.jsonl`.

    Raises UsageError: a word means no file.
    """
    return find_files(words, lambda name: name.endswith(tuple(endings)), f"ending in {', '.join(endings)}")


def find_files(words: Sequence[str], fits: Callable[[str], bool], wanted: str) -> list[Path]:
    """As `find_sources`, where more than its ending tells a file.

    Args:
        fits: whether a file of this name is looked for in a folder.
        wanted: such files in words, to follow "there is no file".

    Raises UsageError: a word means no file.
    """
    found: dict[Path, None] = {}
    for word in words:
        places = [Path(word)] if Path(word).exists() else sorted(map(Path, glob.glob(word, recursive=True)))
        if not places:
            kind = "No file fits" if glob.has_magic(word) else "There is no file or folder"
            raise UsageError(f"{kind} {word}. SOURCE is a file, a folder or a pattern.")
        files = [file for place in places for file in _files_at(place, fits)]
        if not files:
            where = f"the folder {word}" if len(places) == 1 else f"what fits {word}"
            raise UsageError(f"There is no file {wanted} in {where}.")
        found.update(dict.fromkeys(file.absolute() for file in files))
    return list(found)


def _files_at(place: Path, fits: Callable[[str], bool]) -> list[Path]:
    if not place.is_dir():
        return [place] if place.is_file() else []
    return sorted(file for file in place.rglob("*") if fits(file.name) and file.is_file())


def plain_name(path: Path) -> str:
    """A file's name without the endings of compression and format.

    >>> plain_name(Path("a/run_1.jsonl.zst"))
    'run_1'
    """
    return path.name.removesuffix(path.suffix if path.suffix in _CODECS else "").rsplit(".", 1)[0]


class Source:
    """A file's content, decompressed, in blocks.

    Attributes:
        size: bytes of the file as it lies on disk.
        taken: bytes of it that have been read.
        descriptor: of the open file while its blocks are read, if they lie in it as they are; None where it is
            compressed.
        damage: what kept it from being read to its end, in words; None where nothing did.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self.taken = 0
        self.descriptor: int | None = None
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The content in blocks of about `size` bytes. What comes after damage is left out, and `damage` says so.

        Raises UsageError: the file cannot be opened.
        """
        self.damage, self.taken = None, 0
        try:
            file = pa.OSFile(str(self.path), "rb")
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error}.") from error
        codec = _CODECS.get(self.path.suffix)
        done = 0
        with file:
            self.descriptor = file.fileno() if codec is None else None
            stream = file if codec is None else pa.CompressedInputStream(file, codec)
            pieces: list[bytes] = []
            while True:
                try:
                    piece = stream.read(size if codec is None else _PIECE_BYTES)
                except (OSError, pa.ArrowException) as error:
                    self.damage = (
                        f"the file is damaged or cut off: it can be read up to byte {done:,} of its content ({error})"
                    )
                    piece = b""
                done += len(piece)
                pieces.append(piece)
                self.taken = file.tell()
                if sum(map(len, pieces)) >= size or not piece:
                    if block := b"".join(pieces):
                        yield block
                    pieces = []
                if not piece:
                    self.descriptor = None
                    return
