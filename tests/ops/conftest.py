"""Triton's interpreter without half of its work: it patches the language at each call of a function in a kernel."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    from triton.runtime.interpreter import InterpretedFunction

    call, patched = InterpretedFunction.__call__, set()

    def call_patched_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        """A launch restores what it patched itself. What its functions patch stays: their first call is enough."""
        if self.fn in patched:
            return self.rewrite()(*args, **kwargs)
        patched.add(self.fn)
        return call(self, *args, **kwargs)

    InterpretedFunction.__call__ = call_patched_once
