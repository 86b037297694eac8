"""Relays: the student writes until a trigger, the teacher writes a leg, and the student goes on."""
