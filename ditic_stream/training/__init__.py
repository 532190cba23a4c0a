"""Training: pictures in, checkpoints and a weights file out.  `ditic-stream train` calls `training.train.run`."""

SEED_MAX = 2**31 - 1
"""Largest seed of a run: with the number of a step behind it, it still makes a seed of torch's."""
