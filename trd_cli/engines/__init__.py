"""Engines: token ids in, token ids out, each completion handed on as it finishes.

`base` is the protocol and the way from a name to an engine. The engines import what they need when they are built, so
importing this package loads no model library.
"""
