"""An HDF5 file that keeps to itself: what could lead out of it is refused before it is read.

HDF5 lets a data set lie in other files (external storage), be put together from other data sets
(virtual), be reached through links to other files, and be unpacked by code from outside (filters of
a plug-in). A store needs none of these; in a file from elsewhere they read whatever they name.
"""

from __future__ import annotations

import math

import h5py

__all__ = ["LeadsOutError", "check_attributes", "check_inside"]

# Filters of HDF5 itself and of h5py: gzip, shuffle, checksum, lzf.
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000)
# The one group within a group: columns that rows may be joined by.
KEYS = "/rows/keys"
ATTRIBUTES = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.ENUM, h5py.h5t.FLOAT)
# gzip packs at most 1,032 bytes into one; more than that is not in the file.
MOST_PACKED = 1100


class LeadsOutError(Exception):
    """What in the file is refused, as the middle of a sentence."""


def check_inside(file: h5py.File) -> None:
    """Look at the root, at /rows (with its keys) and /layers, and at every data set in these.

    Raises
    ------
    LeadsOutError
        Where a link is not hard, a data set lies outside or is virtual, has a filter of a plug-in
        or a named type, or an attribute is no text or number.
    KeyError
        Where a group is missing.
    """
    check_attributes(file, "/")
    _check_links(file, "/")
    for name in ("rows", "layers"):
        _check_group(file[name], f"/{name}")


def _check_group(group: h5py.Group | h5py.Dataset, place: str) -> None:
    if not isinstance(group, h5py.Group):
        raise LeadsOutError(f"{place} is no group")
    _check_links(group, f"{place}/")
    for key in group:
        inner, data = f"{place}/{key}", group[key]
        if inner == KEYS:
            _check_group(data, inner)
        elif isinstance(data, h5py.Dataset):
            _check_data(data, inner)
            check_attributes(data, inner)
        else:
            raise LeadsOutError(f"{inner} is no data set")


def check_attributes(item: h5py.Group | h5py.Dataset, place: str) -> None:
    """Refuse attributes that are references to objects, or of named types."""
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        kind = attribute.get_type()
        if kind.get_class() not in ATTRIBUTES or _is_named(kind):
            raise LeadsOutError(f"the attribute {name!r} of {place} is no plain text or number")


def _check_links(group: h5py.Group, place: str) -> None:
    for name in group:
        # By number: a name is looked up in the group itself, and nothing is followed.
        kind = group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type
        if kind != h5py.h5l.TYPE_HARD:
            raise LeadsOutError(f"{place}{name} is a link to somewhere else")


def _check_data(data: h5py.Dataset, place: str) -> None:
    how = data.id.get_create_plist()
    if how.get_layout() == h5py.h5d.VIRTUAL:
        raise LeadsOutError(f"{place} is put together from other data sets (virtual)")
    if how.get_external_count():
        raise LeadsOutError(f"the numbers of {place} lie in another file (external storage)")
    filters = [how.get_filter(i)[0] for i in range(how.get_nfilters())]
    if foreign := [number for number in filters if number not in FILTERS]:
        raise LeadsOutError(f"{place} is packed with the filter {foreign[0]} of a plug-in")
    if _is_named(data.id.get_type()):
        raise LeadsOutError(f"{place} has a named type")
    if how.get_layout() == h5py.h5d.CHUNKED:
        claimed = max(data.size, math.prod(how.get_chunk())) * data.dtype.itemsize
        if claimed > MOST_PACKED * data.id.get_storage_size() + (1 << 16):
            raise LeadsOutError(f"{place} is said to hold {claimed:,} bytes, which are not there")


def _is_named(kind: h5py.h5t.TypeID) -> bool:
    return bool(kind.committed())
