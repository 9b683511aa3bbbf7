"""Does a file that states no length end where a frame ends? In: a seekable binary file. Out: yes or no.

MP3 (ISO/IEC 11172-3 and 13818-3, layer III) and Ogg (RFC 3533) are chains of frames that state their own length; a file
that was cut off almost always ends inside one. Knows nothing of decoding.
"""

from __future__ import annotations

import os
from typing import BinaryIO

__all__ = ["ends_inside_a_frame", "ends_inside_a_page"]

# kbit/s by bitrate index; 0 ("free") and 15 (forbidden) state no length
BITRATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
BITRATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
RATES_1 = (44100, 48000, 32000)  # Hz; MPEG 2 has halves, MPEG 2.5 quarters
LAYER_3 = 1
OGG_TAIL = 65_307  # bytes: the largest page there can be


def ends_inside_a_frame(file: BinaryIO) -> bool:
    """Walk the frames of a layer III file from its first one; False where the chain cannot be followed to the end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    place = _after_id3(file.read(10))
    while place + 4 <= size:
        file.seek(place)
        length = _frame_bytes(file.read(4))
        if length is None:  # a tag behind the sound, or something this does not know
            return False
        place += length
    file.seek(place)
    return place > size or file.read(1) == b"\xff"  # past the end, or a header of less than four bytes


def ends_inside_a_page(file: BinaryIO) -> bool:
    """Whether the last Ogg page states more bytes than the file has."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * OGG_TAIL))
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return start >= 0  # a page whose very header is incomplete
    segments = tail[start + 26]
    lacing = tail[start + 27 : start + 27 + segments]
    return len(lacing) < segments or start + 27 + segments + sum(lacing) > len(tail)


def _after_id3(head: bytes) -> int:
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _frame_bytes(header: bytes) -> int | None:
    """Length of a layer III frame from its four-byte header, or None where there is no such header."""
    if header[0] != 0xFF or header[1] & 0xE0 != 0xE0 or (header[1] >> 1) & 3 != LAYER_3:
        return None
    version = (header[1] >> 3) & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    bitrate, rate, padding = header[2] >> 4, (header[2] >> 2) & 3, (header[2] >> 1) & 1
    if version == 1 or rate == 3 or not 0 < bitrate < 15:
        return None
    if version == 3:
        return 144_000 * BITRATES_1[bitrate] // RATES_1[rate] + padding
    return 72_000 * BITRATES_2[bitrate] // (RATES_1[rate] // (2 if version == 2 else 4)) + padding
