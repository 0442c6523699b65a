"""The files an import reads: named one by one, by folder or by pattern; plain or compressed."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from esper_analytics.errors import NOT_UTF8, UsageError
from esper_analytics.formatting import is_unicode

BLOCK_BYTES = 8 * 2**20
_PIECE_BYTES = 2**16  # a damaged compressed file is read up to at most this far before the damage
_MOST_EXPANSION = 200  # logs compress by a factor of 10 to 50
_ALWAYS_READ = 64 * 2**20
_CODECS = {".gz": "gzip", ".zst": "zstd"}

Progress = Callable[[int, int], None]
"""Called with the bytes read so far, and how many all files have."""


def find_sources(patterns: Sequence[str], is_source: Callable[[str], bool], description: str) -> list[Path]:
    """Return the files that SOURCE means, each once, in the order of the patterns.

    Args:
        patterns: files (of any name), folders (searched with all below them), or glob patterns of both.
        is_source: whether a file of this name is a source, for the files of a folder.
        description: what such a file is, to follow "There is no file".

    Raises UsageError if a pattern matches no file.
    """
    sources: dict[Path, None] = {}
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not paths:
            problem = "No file matches" if glob.has_magic(pattern) else "There is no file or folder"
            raise UsageError(f"{problem} {pattern}. SOURCE is a file, a folder or a pattern.")
        files = [file for path in paths for file in _files_at(path, is_source)]
        if not files:
            searched = f"the folder {pattern}" if len(paths) == 1 else f"what matches {pattern}"
            raise UsageError(f"There is no file {description} in {searched}.")
        if unusual := next((file for file in files if not is_unicode(str(file.absolute()))), None):
            raise UsageError(f"The path {unusual} {NOT_UTF8}.")
        sources.update(dict.fromkeys(file.absolute() for file in files))
    return list(sources)


def _files_at(path: Path, is_source: Callable[[str], bool]) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(file for file in path.rglob("*") if is_source(file.name) and file.is_file())


def track_progress(
    files: Sequence[Path], progress: Progress | None
) -> Iterator[tuple[Path, Callable[[int], None] | None]]:
    """Yield each file with a function to call with the bytes read of it; the end of a file is reported without it."""
    sizes = [_size(file) for file in files]
    done, total = 0, sum(sizes)
    for file, size in zip(files, sizes, strict=True):
        if progress is None:
            yield file, None
            continue

        def report(read: int, before: int = done) -> None:
            progress(before + read, total)

        yield file, report
        done += size
        progress(done, total)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def base_name(path: Path) -> str:
    """Return a file's name without the endings of compression and format.

    >>> base_name(Path("a/run_1.jsonl.zst"))
    'run_1'
    """
    return path.name.removesuffix(path.suffix if path.suffix in _CODECS else "").rsplit(".", 1)[0]


class Source:
    """A file's content, decompressed, in blocks.

    Covers: damage at any byte, and a compressed file whose content is far larger than any log's.

    Attributes:
        bytes_read: bytes of the file, as it lies on disk, that have been read.
        descriptor: the open file's, while blocks are read that lie in it unchanged; None if it is compressed.
        damage: why it could not be read to its end; None if it could.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self.bytes_read = 0
        self.descriptor: int | None = None

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[bytes]:
        """Yield the content in blocks of about `size` bytes, up to its end or to where it is damaged.

        Raises UsageError if the file cannot be opened.
        """
        self.damage, self.bytes_read = None, 0
        try:
            file = pa.OSFile(str(self.path), "rb")
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error}.") from error
        codec = _CODECS.get(self.path.suffix)
        decompressed = 0
        most = math.inf if codec is None else max(_ALWAYS_READ, _MOST_EXPANSION * _size(self.path))
        with file:
            self.descriptor = file.fileno() if codec is None else None
            stream = file if codec is None else pa.CompressedInputStream(file, codec)
            pieces: list[bytes] = []
            while True:
                try:
                    piece = stream.read(size if codec is None else _PIECE_BYTES)
                except (OSError, pa.ArrowException) as error:
                    place = f"it can be read up to byte {decompressed:,} of its content ({error})"
                    self.damage = f"the file is damaged or cut off: {place}"
                    piece = b""
                decompressed += len(piece)
                if decompressed > most:
                    self.damage = (
                        f"it is read up to byte {most:,} of its content only: no log compresses to less than a "
                        f"{_MOST_EXPANSION}th of its size"
                    )
                    piece = b""
                pieces.append(piece)
                self.bytes_read = file.tell()
                if sum(map(len, pieces)) >= size or not piece:
                    if block := b"".join(pieces):
                        yield block
                    pieces = []
                if not piece:
                    self.descriptor = None
                    return
