"""Training: pictures in, checkpoints and a weights file out.  `ditic-stream train` calls `training.train.run`."""
