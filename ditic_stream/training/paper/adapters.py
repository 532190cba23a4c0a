"""LoRA on the two large networks, by peft: SANA's blocks and DC-AE's decoder.

In: the whole network, its weights frozen.  Out: the same network with a low-rank pair beside each matrix, which alone
is trained there; at the end the products are added to the matrices and the network is what it was.

A pair stands beside every linear layer and every convolution over all channels of SANA's blocks and of the decoder.
Depthwise and grouped convolutions, norms, biases and tables stay: they are a hundredth of the weights and no matrices.
The encoder and the ELIC analysis have none: what the latent codec analyses, and what self-distillation pulls towards,
stands still, and no gradient has to go through them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ditic_stream.errors import ConfigError
from ditic_stream.models.paper.network import PaperNetwork

ADAPTER = "tuned"
MARK = f".{ADAPTER}."
"""What names of the pairs' tensors have in them."""


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"fine-tuning ditic-0.6b needs peft, which is not usable here ({error}); "
            "pip install 'ditic-stream[finetune]'"
        ) from error
    return peft


def places(network: PaperNetwork) -> dict[str, list[str]]:
    """Names of the layers that get a pair, by part (DiT, vae)."""
    return {
        part: [
            name
            for name, layer in getattr(network, part).named_modules()
            if name.startswith(begin) and _is_matrix(layer)
        ]
        for part, begin in (("DiT", "transformer_blocks."), ("vae", "decoder."))
    }


def _is_matrix(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def add(network: PaperNetwork, rank: int, seed: int) -> None:
    """Put the pairs in, in float32; at first they change nothing.  A seed draws the same pairs everywhere.

    Raises ConfigError without peft, or for a rank below 1.
    """
    if rank < 1:
        raise ConfigError(f"rank {rank} is below 1; adapters need at least 1")
    peft = _peft()
    for part, names in places(network).items():
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0, bias="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, getattr(network, part), adapter_name=ADAPTER)
    for name, parameter in adapted(network).items():
        if "lora_A" not in name and "lora_B" not in name:
            raise ConfigError(f"peft made {name}, which is no part of a low-rank pair; use peft 0.21")
        parameter.data = parameter.data.float()


def adapted(network: PaperNetwork) -> dict[str, nn.Parameter]:
    """The tensors of all pairs, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if MARK in name}


@torch.no_grad()
def merged(network: PaperNetwork) -> dict[str, Tensor]:
    """The tensors of the network under a checkpoint's names, on the CPU, each product added to its matrix in float32.

    The network stays as it is.
    """
    layers = dict(network.named_modules())
    out: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if MARK in name:
            continue
        owner, _, leaf = name.rpartition(".base_layer.")
        if owner and leaf == "weight":
            tensor = tensor.float() + layers[owner].get_delta_weight(ADAPTER).to(tensor.device)
        out[name.replace(".base_layer.", ".")] = tensor.detach().cpu().contiguous()
    return out
