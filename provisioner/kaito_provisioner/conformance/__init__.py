"""A kit that any backend of the ``CloudProvider`` protocol passes or fails, in seconds.

**Writing a backend** means implementing :class:`~kaito_provisioner.cloud.CloudProvider`, seven methods and two
attributes. What is hard about it is not in their signatures:

* ``create`` is asked again whenever its answer was lost, and by a process that knows nothing. Let the cloud decide
  whether there is one already: name the instance after the claim, write the claim's uid and kind on it, create only if
  the name is free, and if it is not look whose it is. A check of one's own before the request is a race.
* Nothing waits. What the cloud is still doing is ``Creating`` or ``Deleting``, with the text by which another process
  can ask after it in ``operation``; a cloud that throttles is ``Throttled``, with its seconds. Switch off the retries
  of the cloud's SDK: they sleep.
* ``NotFound`` is a fact, and never a guess: instances are leaked over it. A request that failed is another error, one
  whose answer was lost an ambiguous one.
* ``list`` is the bill. It shows all that was made for this cluster's claims, failed and half-made ones too, and nothing
  else.

**Trying it** takes a bench: see :class:`~kaito_provisioner.conformance.bench.Bench` for what one has to do, and
:mod:`kaito_provisioner.conformance.sim` for one. Then::

    python -m kaito_provisioner.conformance my_cloud.bench:make_bench

or, in a test suite, one test per promise::

    @pytest.mark.parametrize("case", CASES, ids=str)
    async def test_the_backend_keeps_the_protocol(case: Case) -> None:
        try:
            await case.run(make_bench)
        except NotApplicable as reason:
            pytest.skip(str(reason))

The kit does nothing but await the provider and the bench, so any event loop will do. Where cloud and provider take
their time from the loop, let ``Bench.elapse`` sleep, and run the kit on a loop whose clock jumps: with ``--run
module:function`` of whatever is called like ``asyncio.run``, or as the test suite does. Otherwise hours are waited for.
"""

from kaito_provisioner.conformance.bench import (
    CONSISTENT,
    RETRY_AFTER,
    SLOW,
    Bench,
    Existing,
    Fault,
    MakeBench,
    NotApplicable,
    Shortage,
)
from kaito_provisioner.conformance.case import Case, Violation
from kaito_provisioner.conformance.report import CASES, Outcome, Report, Result, check

__all__ = [
    "CASES",
    "CONSISTENT",
    "RETRY_AFTER",
    "SLOW",
    "Bench",
    "Case",
    "Existing",
    "Fault",
    "MakeBench",
    "NotApplicable",
    "Outcome",
    "Report",
    "Result",
    "Shortage",
    "Violation",
    "check",
]
