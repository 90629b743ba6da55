"""Two hosts on one machine: network namespaces of our own, joined by a virtual cable and to nothing else.

Each has its own loopback, ports and one address on the cable; files and processes are the machine's. Linux, `ip` (of
iproute2) and the rights of root are needed. What a killed process left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

_NAME = re.compile(r"tol-(\d+)-[0-9a-f]{6}-[ab]")
"""Of a namespace: whose (pid), which pair, which end."""

_ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Of the two ends of every cable: pairs know nothing of each other, nor of the machine's networks."""

_CABLE = "cable"
_KILL_S = 10.0


class NamespacesError(RuntimeError):
    """A namespace could not be made, changed or removed; the text is what `ip` or `tc` says."""


class NotPermittedError(NamespacesError):
    """This process may not make network namespaces or limit their links, or the program for it is not installed."""


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """One host: its name for `ip netns`, and its address as the other one sees it."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """A command line that runs these words in here; the process has the pid that it is started with."""
        return ["ip", "netns", "exec", self.name, *words]

    def limit(self, bytes_per_s: float) -> None:
        """Let no more than this leave over the cable: a token bucket, whose first 32 KiB go at once.

        Raises:
            NotPermittedError: `tc` is not installed, or this system has no token bucket filter.
        """
        self.shape(_CABLE, f"{int(8 * bytes_per_s)}bit", burst="32kb", latency="100ms")

    def shape(self, device: str, rate: str, *, burst: str, latency: str) -> None:
        """Hold what leaves by a device of this namespace to `rate` by a token bucket; all as `tc` writes them.

        Raises:
            NotPermittedError: `tc` is not installed, or this system has no token bucket filter.
        """
        if shutil.which("tc") is None:
            raise NotPermittedError("`tc` is not installed (iproute2)")
        bucket = ("tbf", "rate", rate, "burst", burst, "latency", latency)
        try:
            _run("tc", "-n", self.name, "qdisc", "replace", "dev", device, "root", *bucket)
        except NamespacesError as error:
            if "permitted" in str(error) or "denied" in str(error):
                raise NotPermittedError(f"shaping a link needs the capability CAP_NET_ADMIN: {error}") from error
            raise NotPermittedError(
                f"the rate of a link cannot be limited here (is the kernel's sch_tbf there?): {error}"
            ) from error

    def pids(self) -> list[int]:
        """Processes that are in here now."""
        return [int(word) for word in ip("netns", "pids", self.name).split()]

    def kill(self) -> int:
        """SIGKILL to every process in here, until there are none; returns how many there were.

        Raises:
            NamespacesError: some are still there after 10 s.
        """
        seen: set[int] = set()
        end = time.monotonic() + _KILL_S
        while pids := self.pids():
            if time.monotonic() > end:
                raise NamespacesError(f"{self.name}: the processes {pids} cannot be ended")
            for pid in pids:
                seen.add(pid)
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)
        return len(seen)


@contextmanager
def two_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two new namespaces with a cable between them; both and all processes in them are gone at the end.

    Raises:
        NotPermittedError: this process may not make any.
        NamespacesError: one could not be made, or not removed.
    """
    if shutil.which("ip") is None:
        raise NotPermittedError("`ip` is not installed (iproute2)")
    remove_stale()
    pair = f"tol-{os.getpid()}-{secrets.token_hex(3)}"
    one, two = (Namespace(name=f"{pair}-{end}", address=at) for end, at in zip("ab", _ADDRESSES, strict=True))
    try:
        for end in (one, two):
            _make(end.name)
        ip("link", "add", _CABLE, "netns", one.name, "type", "veth", "peer", "name", _CABLE, "netns", two.name)
        for end in (one, two):
            ip("-n", end.name, "addr", "add", f"{end.address}/30", "dev", _CABLE)
            for link in ("lo", _CABLE):
                ip("-n", end.name, "link", "set", link, "up")
        yield one, two
    finally:
        _remove({one.name, two.name} & set(_names()))


def remove_stale() -> int:
    """Remove what processes left that are gone, with all that runs in there; returns how many namespaces."""
    owners = {name: int(found[1]) for name in _names() if (found := _NAME.fullmatch(name))}
    stale = {name for name, owner in owners.items() if not psutil.pid_exists(owner)}
    _remove(stale)
    return len(stale)


def _make(name: str) -> None:
    try:
        ip("netns", "add", name)
    except NamespacesError as error:
        if os.geteuid() or "permitted" in str(error) or "denied" in str(error):
            raise NotPermittedError(f"network namespaces need the rights of root: {error}") from error
        raise


def _remove(names: set[str]) -> None:
    """Remove all of them, each whatever becomes of the others."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(ip, "netns", "delete", name)
            stack.callback(Namespace(name=name, address="").kill)


def _names() -> list[str]:
    return [line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()]


def ip(*words: str) -> str:
    """What `ip` prints for these words.

    Raises:
        NamespacesError: it failed.
    """
    return _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespacesError(f"`{' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout
