"""What a long loop reports of itself, with a terminal and without."""

import io
import logging
import sys
import time

from vae_attn.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_a_line_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "vae_attn")
    now = iter([0.0, 4.0, 11.0, 12.0, 40.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with Progress("explaining", total=20, unit="files") as progress:
        for _ in range(4):
            progress.add(5)
    lines = [record.message for record in caplog.records]
    assert lines == [
        "explaining: 20 files",
        "explaining: 10 of 20 files",
        "explaining: 20 of 20 files",
    ]


def test_a_single_one_is_not_in_the_plural(caplog):
    caplog.set_level(logging.INFO, "vae_attn")
    with Progress("drawing", total=1, unit="figures"):
        pass
    assert [record.message for record in caplog.records] == ["drawing: 1 figure"]


def test_on_a_terminal_a_bar(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "vae_attn")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("explaining", total=20) as progress:
        time.sleep(0.15)  # a bar is drawn ten times a second at most
        progress.add(20)
    assert "explaining:" in terminal.getvalue()
    assert "20/20" in terminal.getvalue()
    assert not caplog.records
