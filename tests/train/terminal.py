"""Runs a script with its output on a pseudo terminal or in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

SIZE = (24, 120)  # rows, columns


def on_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and everything that reached the terminal."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, SIZE)
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=child, stdout=child, stderr=child, env={**os.environ, **environment}
    )
    os.close(child)
    output = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # how Linux says that the other side was closed
            break
        if not part:
            break
        output += part
    os.close(parent)
    return process.wait(), output.decode().replace("\r\n", "\n")


def in_pipe(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output, both streams in one pipe."""
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout


def as_seen(output: str) -> list[str]:
    """The lines of a terminal's output, with carriage returns obeyed and control sequences taken out."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).split("\n")
    seen = []
    for line in lines:
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        seen.append(shown.rstrip())
    while seen and not seen[-1]:
        seen.pop()
    return seen
