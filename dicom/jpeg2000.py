"""What a JPEG 2000 or HTJ2K codestream says of itself, read before it is decoded.

Owns the walk over its marker segments; decodes nothing. A decoder takes memory for every
tile, precinct and code-block that the headers ask for, whether or not a byte of it
follows: a hundred bytes could take gigabytes, so they are counted here first.
Implements ITU-T T.800 §A.4 to §A.6, §B.3, §B.6 and §B.7, and T.814 §A (the markers of HTJ2K).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dicom.codestream import END_WINDOW_BYTES, MAX_SEGMENTS, Codestream
from dicom.errors import DecodeError

MAX_TILES: Final = 4_096
"""64 by 64 of them: an 8192² image in tiles of 128². The decoder takes about 10 KB for each."""
MAX_TILE_PARTS: Final = 65_536
"""Of all tiles: 16 for each; writers make one for each resolution or layer."""
MAX_PRECINCTS: Final = 65_536
"""Of all tiles, components and resolutions: an 8192² colour image in precincts of 64² has as many.
The decoder takes about 2 KB for each."""
MAX_PACKETS: Final = 1_048_576
"""Precincts times layers: 16 layers of that image. The decoder marks each packet that it has seen."""
MAX_BLOCKS: Final = 262_144
"""Code-blocks: an 8192² colour image in blocks of 32² has as many, in blocks of 64² a quarter.
The decoder takes about 0.4 KB for each."""
MAX_LEVELS: Final = 32
"""Decomposition levels (T.800 Table A.15)."""

_SIZ: Final = 0xFF51
_COD: Final = 0xFF52
_COC: Final = 0xFF53
_SOT: Final = 0xFF90
_SOD: Final = 0xFF93
_EOC: Final = 0xFFD9
_MAIN: Final = frozenset(
    {
        0xFF50,
        _COD,
        _COC,
        0xFF55,
        0xFF56,
        0xFF57,
        0xFF59,
        0xFF5C,
        0xFF5D,
        0xFF5E,
        0xFF5F,
        0xFF60,
        0xFF63,
        0xFF64,
    }
)
"""CAP, COD, COC, TLM, PRF, PLM, CPF, QCD, QCC, RGN, POC, PPM, CRG, COM."""
_TILE: Final = frozenset({0xFF58, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF61, 0xFF64})
"""PLT, QCD, QCC, RGN, PPT, COM: no COD, COC or POC, so that what the main header asks for is all."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """SIZ: the image and its tiles on the reference grid, in samples."""

    left: int
    top: int
    right: int
    bottom: int
    tile_left: int
    tile_top: int
    tile_columns: int
    tile_rows: int
    components: int

    @property
    def tiles(self) -> int:
        """How many there are."""
        across = -(-(self.right - self.tile_left) // self.tile_columns)
        return across * -(-(self.bottom - self.tile_top) // self.tile_rows)

    def tile_edges(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Where the columns of tiles begin and end, and where the rows do; bounded by `MAX_TILES`."""
        return (
            _edges(self.left, self.right, self.tile_left, self.tile_columns),
            _edges(self.top, self.bottom, self.tile_top, self.tile_rows),
        )


def read_jpeg2000(data: bytes) -> tuple[Codestream, bytes]:
    """The size that a JPEG 2000 or HTJ2K codestream announces, and the codestream without a JP2 box.

    Its main header, the headers of its tile-parts and its end marker are walked.

    Raises:
        DecodeError: no such codestream, cut short, a tile is missing, its components differ in
            size or depth, or it asks for more tiles, precincts or code-blocks than are taken.
    """
    if data[4:8] == b"jP  ":
        data = _without_boxes(data)
    grid, depth = _read_siz(data)
    codestream = Codestream(grid.bottom - grid.top, grid.right - grid.left, grid.components, depth)
    _bound("tiles", grid.tiles, MAX_TILES)
    position = 4 + int.from_bytes(data[4:6], "big")
    styles: list[int] = []
    for _ in range(MAX_SEGMENTS):
        marker, segment, after = _segment(data, position)
        if marker == _SOT:
            break
        if marker not in _MAIN:
            raise DecodeError(f"JPEG 2000 main header has marker {marker:04x}, which is not taken here")
        if marker in (_COD, _COC):
            styles.append(marker)
            if styles.count(_COD) > 1 or len(styles) > 1 + grid.components:
                raise DecodeError("JPEG 2000 main header has more coding styles (COD, COC) than components")
            _check_style(marker, segment, grid)
        position = after
    else:
        raise DecodeError(f"JPEG 2000 main header has more than {MAX_SEGMENTS} marker segments")
    if _COD not in styles:
        raise DecodeError("JPEG 2000 main header has no coding style (ff52, COD)")
    _walk_tile_parts(data, position, grid)
    return codestream, data


def _read_siz(data: bytes) -> tuple[_Grid, int]:
    siz = data[2:42]
    if len(siz) < 40 or data[:4] != b"\xff\x4f\xff\x51":
        raise DecodeError(f"JPEG 2000 codestream begins {data[:4].hex()}, must begin ff4fff51 (SOC, SIZ)")
    right, bottom, left, top, tile_columns, tile_rows, tile_left, tile_top = struct.unpack_from(">8I", siz, 6)
    (components,) = struct.unpack_from(">H", siz, 38)
    each = data[42 : 42 + 3 * components]
    if not 1 <= components <= 3 or len(each) != 3 * components:
        raise DecodeError(f"JPEG 2000 codestream has {components} components, allowed 1 to 3")
    if int.from_bytes(siz[2:4], "big") != 38 + 3 * components:
        raise DecodeError("JPEG 2000 codestream: the length of SIZ is not that of its components")
    if any(each[i : i + 3] != each[:1] + b"\x01\x01" for i in range(0, len(each), 3)):
        raise DecodeError("JPEG 2000 codestream: components of different size or depth are not decoded")
    if right <= left or bottom <= top or not tile_columns or not tile_rows:
        raise DecodeError("JPEG 2000 codestream: the image or its tiles have no area")
    if not (tile_left <= left < tile_left + tile_columns and tile_top <= top < tile_top + tile_rows):
        raise DecodeError("JPEG 2000 codestream: its first tile is outside the image (T.800 §B.3)")
    grid = _Grid(left, top, right, bottom, tile_left, tile_top, tile_columns, tile_rows, components)
    return grid, (each[0] & 0x7F) + 1


def _segment(data: bytes, position: int) -> tuple[int, bytes, int]:
    """The marker at `position`, its parameters, and where the next one begins."""
    head = data[position : position + 4]
    if len(head) < 4:
        raise DecodeError(f"JPEG 2000 codestream is cut short at byte {position}")
    marker, length = struct.unpack(">HH", head)
    if marker in (_SOD, _EOC):
        return marker, b"", position + 2
    if marker < 0xFF4F or not 2 <= length <= len(data) - position - 2:
        raise DecodeError(
            f"JPEG 2000 codestream has no marker segment at byte {position}, or it is cut short"
        )
    return marker, data[position + 4 : position + 2 + length], position + 2 + length


def _walk_tile_parts(data: bytes, position: int, grid: _Grid) -> None:
    """From the first SOT to EOC (T.800 §A.4.2): every tile is there, and none that is not."""
    found: set[int] = set()
    for _ in range(MAX_TILE_PARTS):
        if data[position : position + 2] == b"\xff\xd9":
            break
        begin = position
        marker, segment, position = _segment(data, position)
        if marker != _SOT or len(segment) != 8:
            raise DecodeError(
                f"JPEG 2000 codestream has no tile-part at byte {begin}, and no end marker (ffd9)"
            )
        tile, length = struct.unpack_from(">HI", segment)
        if tile >= grid.tiles:
            raise DecodeError(f"JPEG 2000 tile-part is of tile {tile}, there are {grid.tiles}")
        found.add(tile)
        position = _tile_header(data, position)
        end = begin + length if length else data.rfind(b"\xff\xd9", position)  # 0: up to the end
        if not position <= end <= len(data):
            raise DecodeError(f"JPEG 2000 tile-part of tile {tile} is cut short, or has no end marker (ffd9)")
        position = end
    else:
        raise DecodeError(f"JPEG 2000 codestream has more than {MAX_TILE_PARTS} tile-parts")
    if len(found) != grid.tiles:
        raise DecodeError(f"JPEG 2000 codestream has {len(found)} of its {grid.tiles} tiles")
    if len(data) - position - 2 > END_WINDOW_BYTES:
        raise DecodeError(
            f"JPEG 2000 codestream: {len(data) - position - 2} bytes behind its end marker,"
            f" allowed {END_WINDOW_BYTES}"
        )


def _tile_header(data: bytes, position: int) -> int:
    for _ in range(MAX_SEGMENTS):
        marker, _, position = _segment(data, position)
        if marker == _SOD:
            return position
        if marker not in _TILE:
            raise DecodeError(f"JPEG 2000 tile-part header has marker {marker:04x}, which is not taken here")
    raise DecodeError(f"JPEG 2000 tile-part header has more than {MAX_SEGMENTS} marker segments")


def _check_style(marker: int, segment: bytes, grid: _Grid) -> None:
    """Bound what COD or COC (T.800 §A.6.1, §A.6.2) asks for, as if it held for every component."""
    if marker == _COD:
        layers, style = int.from_bytes(segment[2:4], "big"), segment[5:]
    else:
        layers, style = 1, segment[2:]  # the layers are those of COD
    if len(style) < 5 or not layers:
        raise DecodeError("JPEG 2000 coding style (COD, COC) is cut short, or has no layers")
    levels, block_width, block_height = style[0], (style[1] & 0xF) + 2, (style[2] & 0xF) + 2
    has_precincts = segment[0 if marker == _COD else 1] & 1
    exponents = style[5:] if has_precincts else b"\xff" * (levels + 1)
    if levels > MAX_LEVELS or len(exponents) != levels + 1 or (not has_precincts and len(style) != 5):
        raise DecodeError(f"JPEG 2000 coding style has {levels} levels and {len(style) - 5} precinct sizes")
    if block_width > 10 or block_height > 10 or block_width + block_height > 12:
        raise DecodeError(
            f"JPEG 2000 code-blocks are 2^{block_width} by 2^{block_height}, allowed 4096 samples"
        )
    counted = list(_resolutions(grid, exponents, block_width, block_height))
    precincts = sum(count for count, _ in counted)
    _bound("precincts", precincts, MAX_PRECINCTS)
    _bound("packets (precincts times layers)", precincts * layers, MAX_PACKETS)
    _bound("code-blocks", sum(count for _, count in counted), MAX_BLOCKS)


def _resolutions(
    grid: _Grid, exponents: bytes, block_width: int, block_height: int
) -> Iterator[tuple[int, int]]:
    """The precincts and the code-blocks of each resolution, the lowest first (T.800 §B.5 to §B.7)."""
    columns, rows = grid.tile_edges()
    for resolution, exponent in enumerate(exponents):
        halvings = len(exponents) - 1 - resolution
        across, down = exponent & 0xF, exponent >> 4
        # A precinct above the lowest resolution lies on three sub-bands of half its size.
        is_split = 1 if resolution else 0
        if is_split and not (across and down):
            raise DecodeError("JPEG 2000 precincts above the lowest resolution have no size (T.800 §A.6.1)")
        precincts = _cells(columns, halvings, across) * _cells(rows, halvings, down)
        blocks = _cells(columns, halvings + is_split, min(block_width, across - is_split))
        blocks *= _cells(rows, halvings + is_split, min(block_height, down - is_split))
        yield precincts * grid.components, blocks * grid.components * (3 if is_split else 1)


def _edges(first: int, last: int, origin: int, step: int) -> list[tuple[int, int]]:
    starts = range(origin, last, step)
    return [(max(start, first), min(start + step, last)) for start in starts]


def _cells(edges: list[tuple[int, int]], halvings: int, exponent: int) -> int:
    """How many cells of 2^`exponent` the tiles touch in one direction after `halvings`, all together."""
    total = 0
    for begin, end in edges:
        low, high = -(-begin >> halvings), -(-end >> halvings)
        if low < high:
            total += -(-high >> exponent) - (low >> exponent)
    return total


def _bound(name: str, value: int, allowed: int) -> None:
    if value > allowed:
        raise DecodeError(f"JPEG 2000 codestream asks for {value} {name}, allowed {allowed}")


def _without_boxes(data: bytes) -> bytes:
    # Off-spec: PS3.5 §A.4.4 wants the bare codestream; some writers leave the JP2 boxes around it.
    position = 0
    for _ in range(MAX_SEGMENTS):
        head = data[position : position + 8]
        if len(head) < 8:
            break
        if head[4:] == b"jp2c":
            return data[position + 8 :]
        position += max(int.from_bytes(head[:4], "big"), 8)
    raise DecodeError("JP2 file has no codestream box")
