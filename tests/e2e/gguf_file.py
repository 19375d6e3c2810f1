"""Writes GGUF files that hold metadata and no tensors: enough for a vocabulary."""

import struct

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value):
    """The type number and the bytes of a str, bool, int (as u32), or a list of str, int (as i32) or float."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    if isinstance(value, str):
        return STRING, text(value)
    kind, items = {str: (STRING, None), int: (I32, "i"), float: (F32, "f")}[type(value[0])]
    data = b"".join(map(text, value)) if items is None else struct.pack(f"<{len(value)}{items}", *value)
    return ARRAY, struct.pack("<IQ", kind, len(value)) + data


def write(path, metadata):
    metadata = {"general.architecture": "llama", **metadata}
    parts = [b"GGUF", struct.pack("<IQQ", 3, 0, len(metadata))]
    for key, value in metadata.items():
        kind, data = typed(value)
        parts += [text(key), struct.pack("<I", kind), data]
    path.write_bytes(b"".join(parts))
    return path
