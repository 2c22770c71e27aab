"""Embeddings: the path of a request for vectors, much shorter than that of a generation.

Targets of one model stand in for one another; those of different models never do, since vectors of
two models cannot be compared. So there is no ladder: a request walks along the targets of its
model, each behind a circuit of its own, until one answers.

    embeddings.py  the face: checks, walks, tells        walk.py    one request along its targets
    places.py      the targets of a configuration        vectors.py what comes back
"""
