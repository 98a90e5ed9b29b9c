"""The aks backend keeps every promise of the protocol, through the real SDK, against the local ARM in virtual time.

Among them: with each fault at each request in turn, and with pairs of them, of a creation and of a deletion, no pool is
ever doubled, none is left, and every claim comes to its end.
"""

from __future__ import annotations

import pytest

from kaito_ctrl.testing.virtualtime import run_virtual
from kaito_provisioner.conformance import CASES, Case, NotApplicable
from tests.unit.provisioner.aksbench import aks_bench


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_backend_keeps_the_protocol(case: Case) -> None:
    try:
        run_virtual(case.run(aks_bench))
    except NotApplicable as reason:
        pytest.skip(str(reason))
