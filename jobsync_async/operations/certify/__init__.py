"""Certifies a server: tries there what workers need, measures it, judges it, and leaves nothing
behind.

Three worker processes (`worker.py`, told what to do by `crew.py`) join, leave, stand still and die
(`trial.py`). Meanwhile sessions of the run's own try locks, time-outs and notifications
(`probes.py`). All of that makes figures (`figures.py`), which `verdicts.py` and `reactions.py`
judge: they are pure. `run.py` puts it in order. A process of its own removes everything in the end
(`janitor.py`), also when all others were killed.
"""
