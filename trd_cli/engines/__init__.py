"""Engines: token ids in, token ids out, each completion yielded as soon as it is finished.

`base` holds the protocol, `registry` finds an engine by its name. The engines import heavy libraries when they are
built, so importing this package loads no model library.
"""
