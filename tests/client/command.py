"""The command line as a process: `python -m unrolled`."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# A shell's background jobs ignore Ctrl-C, and a test run may be one: the command must not.
_LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
if os.isatty(0):
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "unrolled", *sys.argv[1:]])
"""
PATIENCE = 60.0


def environment(**changes: str) -> dict[str, str]:
    """UTF-8 and no server but the one that a test names."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNROLLED_")}
    return {**kept, "PYTHONUTF8": "1", "TERM": "dumb", "COLUMNS": "200", **changes}


def run(
    *arguments: str, told: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end with `told` on standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "unrolled", *arguments],
        input=told,
        capture_output=True,
        env=env or environment(),
        timeout=PATIENCE,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command under way, with pipes for its three streams."""
    with subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._process = process
        self._unread = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, text: str) -> str:
        """Waits for a text and returns what came before it."""
        while text not in self._unread:
            self._unread += self._read()
        before, _, self._unread = self._unread.partition(text)
        return before

    def interrupt(self, text: str) -> None:
        """Presses Ctrl-C until a text comes: readline hears it only while it waits for a key."""
        for _ in range(100):
            self.type("\x03")
            if self._something_comes(PATIENCE / 100):
                break
        self.expect(text)

    def rest(self) -> str:
        """Everything until the command ends."""
        while more := self._read():
            self._unread += more
        return self._unread

    def status(self) -> int:
        return self._process.wait(PATIENCE)

    def _something_comes(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        return bool(ready)

    def _read(self) -> str:
        if not self._something_comes(PATIENCE):
            raise TimeoutError(f"nothing comes after {self._unread!r}")
        try:
            return os.read(self._master, 4096).decode().replace("\r\n", "\n")
        except OSError:
            # What Linux says once the other end is closed.
            return ""


@contextmanager
def terminal(*arguments: str, **variables: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    _keep_output_at_interrupts(slave)
    with subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(**variables),
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            yield Terminal(master, process)
        finally:
            process.kill()
            os.close(master)


def _keep_output_at_interrupts(slave: int) -> None:
    """At Ctrl-C a terminal drops what is in its buffers, an answer that came at once included."""
    attributes = termios.tcgetattr(slave)
    attributes[3] |= termios.NOFLSH
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
