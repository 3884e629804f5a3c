"""Property tests here assert nothing about time: a first example may pay for loading a parser."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
