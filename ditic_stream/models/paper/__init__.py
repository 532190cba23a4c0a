"""ditic-0.6b, the system of the DiT-IC paper (arXiv 2603.13162), value for value; written from its facts, not its code.

    pixels -> backbones (DC-AE) + elic -> latent_codec -> entropy: symbols, table indexes
    symbols -> entropy -> latent_codec's heads + condition -> one_step (SANA) -> backbones (DC-AE) -> pixels

`network` holds all of it; `config` its sizes; `layout` the names and shapes of a checkpoint's tensors; `checkpoint`
reads the authors' files; `seeded` makes weights of no meaning, for tests and measurements.
"""
