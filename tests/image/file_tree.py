"""Trees of files: what is in them, in what two differ, what a user may write."""

import dataclasses
import hashlib
import os
import pathlib
import stat


@dataclasses.dataclass(frozen=True)
class Entry:
    kind: str  # file, directory, link, device
    mode: int
    owner: tuple  # user, group
    content: str  # sha256 of a file, target of a link, number of a device
    size: int  # bytes of a file, else 0
    time: float = dataclasses.field(compare=False)  # of the last change: no part of equality

    def is_writable_by(self, user, group):
        """Whether the mode lets them write, who are in no other group."""
        if self.kind == "link":
            return False
        bit = stat.S_IWUSR if user == self.owner[0] else stat.S_IWGRP if group == self.owner[1] else stat.S_IWOTH
        return bool(self.mode & bit)


def _entry(path):
    facts = path.lstat()
    kind, content, size = "device", str(facts.st_rdev), 0
    if stat.S_ISDIR(facts.st_mode):
        kind, content = "directory", ""
    elif stat.S_ISLNK(facts.st_mode):
        kind, content = "link", os.readlink(path)
    elif stat.S_ISREG(facts.st_mode):
        kind, content, size = "file", hashlib.sha256(path.read_bytes()).hexdigest(), facts.st_size
    return Entry(kind, stat.S_IMODE(facts.st_mode), (facts.st_uid, facts.st_gid), content, size, facts.st_mtime)


def read_tree(root):
    """{path below `root`, with a slash before it: Entry}; links are not followed."""
    root = pathlib.Path(root)
    tree = {"/": _entry(root)}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = pathlib.Path(folder) / name
            tree[f"/{path.relative_to(root)}"] = _entry(path)
    return tree


def differences(one, other):
    """Lines that say in what the second tree is not the first, time stamps aside."""
    lines = [f"{path}: only in the first" for path in sorted(one.keys() - other.keys())]
    lines += [f"{path}: only in the second" for path in sorted(other.keys() - one.keys())]
    return lines + [f"{path}: {one[path]} != {other[path]}" for path in sorted(one.keys() & other.keys()) if one[path] != other[path]]


def writable(tree, user, group):
    """Paths that the user may write: of a folder, make files in."""
    return sorted(path for path, entry in tree.items() if entry.is_writable_by(user, group))


def megabytes(tree):
    """What its files hold, in MB of 10^6 bytes."""
    return sum(entry.size for entry in tree.values()) / 1e6
