"""The command line in a folder of photographs."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphbuild.cli import app
from tests.support.commands import Command, Result


@pytest.fixture
def cli(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run one command in a folder that has six photographs in `photos`."""
    (tmp_path / "photos").mkdir()
    for file in sorted(photos.iterdir())[:6]:
        shutil.copy2(file, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def command(line: str) -> Result:
        argv = shlex.split(line)
        monkeypatch.setattr(sys, "argv", ["graphbuild", *argv])
        result = CliRunner().invoke(app, argv)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return Result(result)

    return command
