"""Views of memory that somebody else owns, saved as what they are: arrays of numpy, and memoryviews.

A view is saved with its owner and its place in it, so that both still show the same bytes afterwards. numpy need not be
there. Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any


def reduce_array(array: Any) -> Any:
    """How to make the array again; None where the way of its own type is right."""
    numpy: Any = sys.modules["numpy"]
    kind, owner = type(array), owner_of(array)
    if kind not in (numpy.ndarray, numpy.matrix, numpy.recarray):
        return None
    writeable = bool(array.flags.writeable)
    if owner is None:
        order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else ""
        if array.dtype.hasobject or not array.nbytes or not order:
            return array.__reduce__()
        from pickle import PickleBuffer

        data = PickleBuffer(bytes_of(array))
        return make_array, (kind, array.dtype, array.shape, order, writeable, data)
    if not isinstance(owner, (numpy.ndarray, bytes, bytearray, memoryview)) and type(owner).__module__ != "array":
        raise TypeError(f"cannot save an array over the memory of a {type(owner).__name__!r} object")
    if isinstance(owner, numpy.ndarray) and owner.dtype.hasobject != array.dtype.hasobject:
        raise TypeError("cannot save a view of plain numbers over memory that holds objects")
    if not array.size:
        return array.__reduce__()
    start = address(array) - address(owner)
    return make_array_view, (owner, kind, array.dtype, array.shape, array.strides, start, writeable)


def owner_of(array: Any) -> Any:
    """Whose memory the array shows; None where it is its own."""
    numpy: Any = sys.modules["numpy"]
    owner = array.base
    while owner is not None:
        further = owner.base if isinstance(owner, numpy.ndarray) or type(owner).__name__ == "DummyArray" else None
        if type(owner) is memoryview and shows_all(owner):
            further = owner.obj
        if further is None:
            return owner
        owner = further
    return None


def bytes_of(owner: Any) -> Any:
    """The memory of an array that owns it, as one row of bytes."""
    numpy: Any = sys.modules["numpy"]
    flat = owner.ravel(order="K") if owner.ndim != 1 else owner
    return flat.view(numpy.uint8)


def address(obj: Any) -> int:
    numpy: Any = sys.modules["numpy"]
    if not isinstance(obj, numpy.ndarray):
        obj = numpy.frombuffer(obj, numpy.uint8)
    return int(obj.__array_interface__["data"][0])


def make_array(kind: type, dtype: Any, shape: Any, order: str, writeable: bool, data: Any) -> Any:
    numpy: Any = __import__("numpy")

    array = numpy.ndarray.__new__(kind, shape, dtype, order=order)
    bytes_of(array)[:] = numpy.frombuffer(data, numpy.uint8)
    array.flags.writeable = writeable
    return array


def make_array_view(owner: Any, kind: type, dtype: Any, shape: Any, strides: Any, start: int, writeable: bool) -> Any:
    numpy: Any = __import__("numpy")

    if isinstance(owner, numpy.ndarray) and dtype.hasobject:
        flat = owner.ravel(order="K")
        array = numpy.lib.stride_tricks.as_strided(flat[start // flat.itemsize :], shape, strides)
        if array.dtype != dtype:
            raise TypeError("cannot load a view of objects that is of another type than its owner")
    else:
        data = bytes_of(owner) if isinstance(owner, numpy.ndarray) else owner
        array = numpy.ndarray.__new__(kind, shape, dtype, data, start, strides)
    if not writeable:
        array.flags.writeable = False
    return array


def reduce_memoryview(view: Any) -> Any:
    if not shows_all(view):
        raise TypeError("cannot save a memoryview of a part of its object, or of another format")
    return make_memoryview, (view.obj, view.readonly and not memoryview(view.obj).readonly)


def shows_all(view: memoryview) -> bool:
    whole = memoryview(view.obj)
    return view.contiguous and (view.format, view.shape, view.strides) == (whole.format, whole.shape, whole.strides)


def make_memoryview(owner: Any, readonly: bool) -> Any:
    view = memoryview(owner)
    return view.toreadonly() if readonly else view
