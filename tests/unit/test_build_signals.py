"""What a build that is stopped says and returns."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import NoReturn

import pytest

from tolbuild.build_config import BuildConfig
from tolbuild.run import main


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_status_names_the_signal_also_where_ray_raises_its_own_interrupt(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: BuildConfig) -> NoReturn:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("tolbuild.run.build", interrupted)
    assert main(["--checkpoint", "builtin:tiny", "--table", str(tmp_path / "table")]) == code
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
