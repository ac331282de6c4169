"""Conversion at scale: cut into parts, written by any number of processes, merged at the end.

``plan`` cuts the work, ``part`` does one piece of it, ``pool`` many at a time, ``work`` is the
folder in which the pieces gather, ``judge`` says whether too many samples are bad, ``meter`` shows
how far it is, and ``merge`` makes the corpus.
"""
