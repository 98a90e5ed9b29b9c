"""Seeds that once went wrong, each with what it found. They are run with every test run, for ever.

What a seed draws changes with the catalogue of faults and with the code under test; a seed that no longer leads to what
it once found still is a life with faults like any other, and what it found has a test of its own.
"""

from __future__ import annotations

__all__ = ["PROVISIONER", "RUNTIME", "WORKSPACE"]

WORKSPACE: dict[int, str] = {
    2607: "a node that joined while its machine was being deleted outlived it",
    3001: "a node that joined while its machine was being deleted outlived it",
    5245: "a node that joined while its machine was being deleted outlived it",
    5569: "a node that joined while its machine was being deleted outlived it",
}

RUNTIME: dict[int, str] = {
    90: "an operator took what is outside of the cluster for an object that only a stale list still showed",
    92: "an answer that was late beyond the calm: not a fault of the runtime, but of how the calm was told",
    50104: "the error that says what could not be listed came wrapped in a group",
    50228: "the same, after a pause",
    50496: "what was listed at the very end of the time for it, after a pause, was taken for not listed",
    102751: "an outage lasted into the calm, and a process was down at its beginning: of how the calm was told",
    107417: "the same",
    60052: "an operator made children of an owner that only its silent watch still showed, and the collector took them",
}

PROVISIONER: dict[tuple[str, int], str] = {
    ("sim", 12): "a node that had joined and not registered was held for nobody, and stayed for ever",
    ("sim", 17): "the same",
    ("sim", 128): "the same",
    ("aks", 1270): "a second machine of a pool was taken for one whose claim is gone: of how it was told",
    ("aks", 146): "the same, after a restart",
    ("sim", 135): "a claim was let go whose instance was made by a request that had been under way for long",
}
"""Each with its cloud."""
