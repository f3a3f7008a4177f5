"""A STAND-IN for TRELLIS, for tests alone: it generates nothing.

Its modules, names, signatures, shapes and the places where random numbers are drawn are those of microsoft/TRELLIS,
read in its source; what it makes of them is simple enough to be known beforehand. It is stricter than TRELLIS where a
hand-over can go wrong: conditions of another shape, type or negative are refused.
"""
