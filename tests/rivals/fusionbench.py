"""Run inside FusionBench's own environment: its functions on given task vectors.

    python fusionbench.py TASK_VECTORS.npz RESULTS.npz

Arrays come as `NUMBER:NAME` (task vector of one expert); results go as `METHOD:NAME`. Everything is
float32, as FusionBench computes. Nothing of AWD Studio is imported here.
"""

# pyright: reportMissingImports=false

import sys
from typing import Any

import numpy as np
import torch
from fusion_bench.method.doge_ta.doge_ta import DOGE_TA_Algorithm
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.knots.knots_utils import subspace_alignment
from fusion_bench.method.opcm.opcm import OPCMForCLIP
from fusion_bench.method.tall_mask.utils import generate_task_masks
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import (
    compute_and_sum_svd_mem_reduction,
)
from fusion_bench.method.wudi.wudi import wudi_merging
from lightning.fabric import Fabric

State = dict[str, torch.Tensor]


def opcm(taus: list[State], alpha: float) -> State:
    """The loop of `OPCMForCLIP.run` around its own functions, on a base of zero."""
    algorithm = object.__new__(OPCMForCLIP)
    algorithm.previous_lambda_t, algorithm.lambda_t = 1, None
    merged = {name: tau.clone() for name, tau in taus[0].items()}
    norms = [norm(taus[0])]
    for tau in taus[1:]:
        norms.append(norm(tau))
        algorithm.lambda_t = 1
        for name, new in tau.items():
            given = merged[name], torch.zeros_like(new), new
            if new.dim() == 2:
                merged[name] = algorithm.merge_linear_weights(*given, name, alpha)
            else:
                merged[name] = algorithm.merge_other_parameters(*given, name)
        scale = float(np.mean(norms)) / norm(merged)
        algorithm.previous_lambda_t = 1 / scale
        merged = {name: scale * value for name, value in merged.items()}
    return merged


def norm(state: State) -> float:
    """Of a whole model."""
    return float(torch.cat([value.flatten() for value in state.values()]).norm())


class Doge(DOGE_TA_Algorithm):
    """On the CPU, outside of FusionBench's command line."""

    fabric = Fabric(accelerator="cpu")


def doge(taus: list[State]) -> State:
    """Its `run` on modules whose weights are the task vectors, beside a base of zero."""
    names = {name: f"encoder_{name.replace('.', '_')}" for name in taus[0]}

    def module(tau: State) -> torch.nn.Module:
        made = torch.nn.Module()
        for name, value in tau.items():
            made.register_parameter(names[name], torch.nn.Parameter(value.clone()))
        return made

    base = module({name: torch.zeros_like(value) for name, value in taus[0].items()})
    experts = {f"expert_{k}": module(tau) for k, tau in enumerate(taus)}
    merged = Doge(subspace=6, K=30, lamda=0.07).run({"_pretrained_": base} | experts)
    state = merged.state_dict()
    return {name: state[inside] for name, inside in names.items()}


def main() -> None:
    """All methods."""
    given = np.load(sys.argv[1])
    n_experts = 1 + max(int(key.split(":")[0]) for key in given.files)
    taus: list[State] = [{} for _ in range(n_experts)]
    for key in given.files:
        number, name = key.split(":")
        taus[int(number)][name] = torch.from_numpy(given[key])
    matrices = [{n: t for n, t in tau.items() if t.dim() == 2} for tau in taus]
    flat = torch.stack([torch.cat([t.flatten() for t in tau.values()]) for tau in taus])
    unified, masks, scales = emr_merge(taus)
    masks_tall = generate_task_masks(flat, flat, torch.zeros_like(flat[0]), tall_mask_lambda=0.4)
    results: dict[str, State] = {
        "tsv_m": compute_and_sum_svd_mem_reduction(taus, accelerator="cpu"),
        "iso_c": iso_c(taus, accelerator="cpu"),
        "iso_cts": iso_cts(taus, 0.8, accelerator="cpu"),
        "wudi": wudi_merging(taus, accelerator="cpu", iter_num=300),
        "opcm": opcm(taus, 0.5),
        "doge": doge(matrices),
        "emr": {n: scales[0] * masks[n][0] * unified[n] for n in unified},
        "tall_masks": {"flat": masks_tall[0] * flat.sum(0)},
    }
    name = next(n for n, t in taus[0].items() if t.dim() == 2)
    u, s, parts = subspace_alignment([tau[name] for tau in taus], eps=0.0)
    results["knots_sum"] = {name: u @ torch.diag(s) @ sum(parts)}
    results["knots_spectrum"] = {name: s}
    arrays: dict[str, Any] = {
        f"{method}:{name}": value.detach().numpy()
        for method, state in results.items()
        for name, value in state.items()
    }
    np.savez(sys.argv[2], **arrays)


if __name__ == "__main__":
    main()
