"""Tests of the long form: more of the same, for a machine with time."""

from __future__ import annotations

import os

import pytest

long_form = pytest.mark.skipif(not os.environ.get("GRAPHBUILD_LONG"), reason="long form: set GRAPHBUILD_LONG=1")
