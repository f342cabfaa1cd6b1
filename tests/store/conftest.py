"""One small sound graph that tests damage copies of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.annotators import build, complete


@pytest.fixture(scope="session")
def sound(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs in two shards, one of them broken, with edges, masks and captions."""
    folder = Path(shutil.copytree(photos, tmp_path_factory.mktemp("sound") / "photos"))
    for number, file in enumerate(sorted(folder.iterdir())):
        if number >= 8:
            file.unlink()
        elif number % 2:
            file.with_suffix(".txt").write_text(f"Number {number}, described in words.")
    (folder / "p05.png").write_bytes(b"not a picture")
    out = folder.parent / "g"
    complete(build(folder, out, ["canny", "source_caption"], shard_size=4))
    return out


@pytest.fixture
def graph(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "g"))
