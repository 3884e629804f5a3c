"""Holds the grammar of the policy language, `policy.lark`, where the installed package can find it."""

from __future__ import annotations
