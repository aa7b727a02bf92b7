"""Runs a pickle of tensors by hand, since `pickle` itself cannot be made safe.

Even with every name refused, it can be made to allocate without bound by ten bytes (an index of
its memo) and to hang (the hash of a tuple that holds itself twice, forty levels deep).
"""

import io
import pickle
import pickletools
from collections.abc import Callable

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = frozenset(("FLOAT", "BINFLOAT", "INT", "BININT", "BININT1", "BININT2"))
_LITERALS |= {"LONG", "LONG1", "LONG4"}
_LITERALS |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_PUT, _GET = (frozenset((f"{op}", f"BIN{op}", f"LONG_BIN{op}")) for op in ("PUT", "GET"))
_ALLOWED = {*_LITERALS, *_CONSTANTS, *_EMPTY, *_PUT, *_GET}
_ALLOWED |= {"MARK", "MEMOIZE", "GLOBAL", "BINPERSID", "PROTO", "FRAME", "STOP"}
_ALLOWED |= {*_TUPLES, "TUPLE", "SETITEM", "SETITEMS", "APPEND", "APPENDS"}
_ALLOWED |= {"STACK_GLOBAL", "REDUCE", "BUILD"}


def load(
    file: io.BufferedIOBase,
    *,
    find_global: Callable[[str], object],
    persistent_load: Callable[[object], object],
) -> object:
    """Reads one pickle, up to its STOP; memory and time are bounded by its length.

    Args:
      file: where the pickle begins.
      find_global: what a full name, such as `torch.FloatStorage`, stands for; raises for all that
        are refused. What it returns is called where the pickle asks to, if it can be.
      persistent_load: what a persistent identity stands for.

    Returns:
      The object: names, numbers, tuples, lists, dicts with names as keys, and what the two gave.

    Raises:
      pickle.UnpicklingError: an opcode that no such object needs. IndexError, KeyError, TypeError
        or ValueError: a damaged pickle.
    """
    stack, memo = [], {}
    while code := file.read(1):
        name = _OPCODES[code].name
        if name not in _ALLOWED:  # before its argument is read
            raise pickle.UnpicklingError(f"the opcode {name}, which no state dict needs")
        if name == "GLOBAL":  # whose reader would take a backslash for an escape
            stack.append(find_global(f"{_line(file)}.{_line(file)}"))
            continue
        argument = _OPCODES[code].arg and _OPCODES[code].arg.reader(file)
        if name == "STOP":
            return stack.pop()
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _PUT:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name == "BINPERSID":
            stack.append(persistent_load(stack.pop()))
        elif name not in ("PROTO", "FRAME"):
            _combine(name, stack, find_global)
    raise EOFError("a pickle without an end")


def _combine(name: str, stack: list, find_global: Callable[[str], object]) -> None:
    """The opcodes that take several values from the stack."""
    if name == "TUPLE":
        stack.append(tuple(_to_mark(stack)))
    elif name in _TUPLES:
        stack.append(tuple([stack.pop() for _ in range(_TUPLES[name])][::-1]))
    elif name in ("SETITEM", "SETITEMS"):
        items = _to_mark(stack) if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
        if not all(isinstance(key, str) for key in items[::2]):
            raise pickle.UnpicklingError("a dict with keys that are no names")
        _top(stack, dict).update(zip(items[::2], items[1::2], strict=True))
    elif name in ("APPEND", "APPENDS"):
        items = _to_mark(stack) if name == "APPENDS" else [stack.pop()]
        _top(stack, list).extend(items)
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise pickle.UnpicklingError("a global that has no name")
        stack.append(find_global(f"{module}.{attribute}"))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(function(*arguments))
    else:  # BUILD: attributes, of which none is read
        stack.pop()


def _line(file: io.BufferedIOBase) -> str:
    return file.readline().removesuffix(b"\n").decode()


def _to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _top(stack: list, kind: type) -> dict | list:
    if not isinstance(stack[-1], kind):
        raise pickle.UnpicklingError(f"a {type(stack[-1]).__name__} in place of a {kind.__name__}")
    return stack[-1]
