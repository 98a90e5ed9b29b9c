"""An embedded Kubernetes API server: one process, in memory and over TCP, close enough to the real one for its tests.

::

    server = ApiServer()
    transport = server.transport()
    async with serve(server, token="secret") as endpoint:
        Path("kubeconfig").write_text(yaml.safe_dump(endpoint.kubeconfig()))

It is a development and test tool, and nothing outlives the process. Everybody authenticated may do everything, unless
it is made with ``rbac=True``. More users are added as ``server.tokens.add("their token", User.authenticated("jane"))``.
"""

from __future__ import annotations

from kaito_ctrl.devcluster.apiserver.identity import User
from kaito_ctrl.devcluster.apiserver.server import ApiServer
from kaito_ctrl.devcluster.apiserver.tcp import Endpoint, serve

__all__ = ["ApiServer", "Endpoint", "User", "serve"]
