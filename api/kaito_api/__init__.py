"""Typed Kubernetes objects: KAITO's own kinds, Karpenter's node requests, and the few core kinds that they touch.

The models are partial on purpose: they name the fields that somebody here reads or writes. Unknown fields are not an
error, and no model is ever written back whole, so nothing that a newer server knows is lost. This package depends on
pydantic alone.
"""
