"""Writes GGUF files: metadata, enough for a vocabulary, and tensors of zeros that take no room on the disk."""

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


def write(path, metadata, tensors=None):
    """`tensors`: the length of a row and the number of rows by name; they are F32."""
    metadata = {"general.architecture": "llama", **metadata}
    tensors = tensors or {}
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, data = typed(value)
        parts += [text(key), struct.pack("<I", kind), data]
    size = 0
    for name, (columns, rows) in tensors.items():
        parts += [text(name), struct.pack("<IQQIQ", 2, columns, rows, 0, size)]
        size += columns * rows * 4  # of 32, so that the next one is aligned
    head = b"".join(parts)
    with open(path, "wb") as file:
        file.write(head)
        if tensors:
            file.truncate((len(head) + 31) // 32 * 32 + size)
    return path
