"""What ``exec``, ``attach`` and ``port-forward`` say to ``kubectl``: connections that stop being HTTP.

From the bottom: ``inbox`` (bytes on their way to a reader), ``channels`` (several byte streams over one connection,
and the WebSocket way of it), ``spdy`` and ``spdyconnection`` (the SPDY way), ``upgrade`` (from a request to one or the
other), ``remotecommand`` and ``portforward`` (what the channels mean), ``sessions`` (handlers that outlive a request).
"""
