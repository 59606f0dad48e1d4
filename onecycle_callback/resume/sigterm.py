"""SIGTERM waits until a run is saved"""

import os
import signal
import threading
from types import FrameType
from typing import Any

class HeldSigterm:
    "Within this context a SIGTERM waits for `let_go`, or for the context's end."
    def __enter__(self):
        self._pending:tuple[int, FrameType|None]|None = None
        self._pid, self._previous = os.getpid(), self._handler()
        if self._previous is not None: signal.signal(signal.SIGTERM, self._hold)
        return self

    def __exit__(self, *_):
        try: self.let_go()
        finally:
            if self._previous is not None: signal.signal(signal.SIGTERM, self._previous)

    def _handler(self) -> Any:
        "Return what handles SIGTERM so far; `None` if it is ignored, or if this thread or Python can't change that."
        if threading.current_thread() is not threading.main_thread(): return None
        handler = signal.getsignal(signal.SIGTERM)
        return None if handler == signal.SIG_IGN else handler

    def _hold(self, signum, frame):
        "Note the signal; let it go if it is the second one, or if it came to a forked child."
        is_first, self._pending = self._pending is None, (signum, frame)
        if not is_first or os.getpid() != self._pid: self.let_go()

    @property
    def is_pending(self) -> bool:
        "Whether a signal waits."
        return self._pending is not None

    def let_go(self):
        "Let a signal that waits do what it would have done: call the handler from before, or end the process."
        if self._pending is None: return
        pending, self._pending = self._pending, None
        if callable(self._previous): return self._previous(*pending)
        signal.signal(signal.SIGTERM, self._previous)
        os.kill(os.getpid(), signal.SIGTERM)
