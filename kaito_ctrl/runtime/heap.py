"""What a cache costs Python's garbage collector, and how a daemon keeps out of its way.

Nothing in a cache is ever part of a reference cycle, so reference counts free all of it, and the collector's full
passes over it find nothing and hold up the loop: tens of milliseconds with 100,000 cached objects, or after the
imports of a larger program. It is for the program to decide on this, not for a library: add :class:`SettledHeap` to a
manager that has a process for itself.
"""

from __future__ import annotations

import gc

from kaito_ctrl.runtime.lifetime import Lifetime

__all__ = ["SettledHeap"]


class SettledHeap:
    """A runnable that collects once, when it starts, and exempts what is alive then from every later pass
    (``gc.freeze``) until it stops. What is replaced later is freed all the same.

    As a manager's first server it exempts the program's modules, so that filling the caches makes no long passes; as
    one of its runnables, which start when the caches are filled, their content.

    The price: a cycle that is alive at that moment, and dropped later, stays until the process ends.
    """

    async def run(self, lifetime: Lifetime) -> None:
        gc.collect()
        gc.freeze()
        try:
            lifetime.started()
            await lifetime.wait_stopping()
        finally:
            gc.unfreeze()
