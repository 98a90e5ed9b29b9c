"""The inference server: one model, ``POST /chat`` and the OpenAI routes, health that tells the truth, metrics.

Run it with ``python3 -m kaito_presets.inference``. Needs the ``inference`` extra; nothing heavy is imported until the
server's own loading thread does so, after the port is open.
"""
