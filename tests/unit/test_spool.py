"""Spooled rows: the same bits back, a limit that holds, and nothing left on the disk however a build ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tolbuild.worker.spool import PREFIX, Spool, remove_abandoned


def test_rows_come_back_bit_for_bit_until_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run", 1 << 20)
    rows = torch.randn(64, 8)
    assert spool.save(2, 128, rows) == rows.numel() * 4
    out = torch.empty(64, 8)
    assert spool.load(2, 128, out) is out
    assert torch.equal(out, rows)
    spool.drop(2, 128)
    assert spool.load(2, 128, out) is None
    spool.close()


def test_more_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run", 5000)
    assert spool.save(0, 0, torch.zeros(64, 16)) == 4096
    assert spool.save(0, 64, torch.zeros(64, 16)) == 0
    spool.close()


def test_no_limit_keeps_nothing_and_makes_no_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "none", "run", 0)
    assert spool.save(0, 0, torch.zeros(64, 16)) == 0
    assert spool.load(0, 0, torch.zeros(64, 16)) is None
    spool.close()
    assert not (tmp_path / "none").exists()


def test_a_torn_file_is_not_taken_for_rows(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run", 1 << 20)
    spool.save(0, 0, torch.zeros(32, 16))
    assert spool.load(0, 0, torch.zeros(64, 16)) is None
    spool.close()


def test_the_last_worker_removes_the_folder(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, "run", 1 << 20), Spool(tmp_path, "run", 1 << 20)
    first.save(0, 0, torch.zeros(64, 16))
    first.close()
    assert second.load(0, 0, torch.zeros(64, 16)) is not None
    second.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other_is_alive", [True, False])
def test_only_folders_of_dead_builds_are_removed(tmp_path: Path, other_is_alive: bool) -> None:
    code = (
        "import os, sys, pathlib, torch\nfrom tolbuild.worker.spool import Spool\n"
        "s = Spool(pathlib.Path(sys.argv[1]), 'other', 1 << 20)\ns.save(0, 0, torch.zeros(64, 16))\n"
        "print('ready', flush=True)\nsys.stdin.read()\nos._exit(9)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        child.stdout.readline()
        if not other_is_alive:
            child.kill()
            child.wait()
        assert remove_abandoned(tmp_path) == (not other_is_alive)
        assert (tmp_path / f"{PREFIX}other").exists() == other_is_alive
        child.stdin.close()
