"""Fine-tuning of ditic-0.6b: adapters on its large networks, its latent codec in full.

    run ---> adapters     LoRA on SANA and the DC-AE decoder, merged at the end
         +-> objective    a crop through the whole system; the losses of the paper
         |     +-> rate   bits of rounded symbols that gradients pass through
         +-> models.paper.tuned     the file that `models import` takes

`ditic-stream train --model ditic-0.6b:q3` calls `run.run`.
"""
