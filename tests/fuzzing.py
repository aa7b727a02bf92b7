"""What the fuzz tests share: how many examples, how bytes are damaged, what an answer may be."""

import contextlib
import os
import pathlib
import resource
import signal
import struct
import warnings

import hypothesis
from hypothesis import strategies as st

from vae_attn.errors import UserError

# Of one test; VAE_ATTN_FUZZ_EXAMPLES multiplies the examples for a longer hunt, from new seeds.
_TIMES = int(os.environ.get("VAE_ATTN_FUZZ_EXAMPLES", "1"))
_OTHERS = {"PIL", "ml_collections"}  # whose warnings no user sees
_SECONDS = 10  # that one example may take, of which a hanging one takes all
_EXTREME = [
    0,
    1,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
]


def examples(count):
    """Settings of a bounded run, always the same one."""
    return hypothesis.settings(
        max_examples=count * _TIMES,
        derandomize=_TIMES == 1,
        deadline=None,  # `answer` has its own, which also ends what hangs
        database=None,
        # A folder and a valid file serve all examples, as each one overwrites what it damages.
        suppress_health_check=[
            hypothesis.HealthCheck.function_scoped_fixture,
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.data_too_large,
        ],
    )


@st.composite
def damaged(draw, whole, *, most=4):
    """A file's bytes after a few accidents: flipped, cut, inserted, doubled, moved or huge."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["flip", "cut", "insert", "double", "remove", "number"]))
        # Headers are where lies matter, at a file's start and at a zip's end.
        near = st.integers(0, min(len(content), 128))
        place = draw(
            st.one_of(near, near.map(lambda n: len(content) - n), st.integers(0, len(content)))
        )
        length = draw(st.sampled_from([1, 2, 4, 8, 30, 200]))
        if kind == "flip" and place < len(content):
            content[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "double":
            content[place:place] = content[place : place + length]
        elif kind == "remove":
            del content[place : place + length]
        elif kind == "number":
            code = draw(st.sampled_from(["B", "<H", ">H", "<I", ">I", "<Q", ">Q"]))
            bits = 8 * struct.calcsize(code)
            number = struct.pack(code, draw(st.sampled_from(_EXTREME)) % 2**bits)
            content[place : place + len(number)] = number
    return bytes(content)


class _HangError(BaseException):
    """No Exception, so that nothing takes it for a damaged file."""


def answer(call, *names):
    """What a call returns, or None for the one error that it may raise; anything else fails.

    Names are texts that the error's one sentence has to hold. Warnings fail as other errors do
    (but for those of `_OTHERS`, which the program or Python silences), and so does a call that
    takes longer than `_SECONDS`.
    """

    def ends(_signal, _frame):
        raise _HangError(f"it takes more than {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ends)
    signal.alarm(_SECONDS)
    try:
        with warnings.catch_warnings(record=True, action="always") as caught:
            result = call()
    except UserError as error:
        check_sentence(str(error), *names)
        result = None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    ours = [one for one in caught if not _OTHERS & {*pathlib.Path(one.filename).parts}]
    assert not ours, [str(one.message) for one in ours]
    return result


def check_sentence(message, *names):
    """A user error: short, printable, on one line (a list of problems has one a line)."""
    for name in names:
        assert str(name) in message, message
    lines = message.splitlines()
    assert len(lines) == 1 or lines[0].endswith(":"), message
    assert all(line.isprintable() for line in lines), ascii(message)
    assert len(message) < 20_000, len(message)
    assert "Traceback" not in message


@contextlib.contextmanager
def memory_limit(mebibytes):
    """No more than this over what the process has; beyond, allocations raise MemoryError."""
    if not os.path.exists("/proc/self/statm"):  # Linux alone tells, and limits
        yield
        return
    with open("/proc/self/statm", encoding="utf-8") as file:
        pages = int(file.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
