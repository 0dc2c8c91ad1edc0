"""Train with FSDP2: weights are sharded, schedules are not; `torch.distributed.checkpoint` stores
both.

torchrun --nproc-per-node 2 examples/fsdp_loop.py --steps 200 --out runs/fsdp
"""

import argparse
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import vdiff
from vdiff.groups import parameter_groups
from vdiff.terminal import replace_unencodable, say
from vdiff.times import draws_of_step, generator_of
from vdiff.training import all_reduce, distributed, rank, shard

BATCH, SEED = 64, 0  # over all ranks


def main() -> None:
    replace_unencodable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/fsdp"))
    options = parser.parse_args()
    with distributed() as device:
        train(options.steps, options.out, device)


def train(steps: int, out: Path, device: torch.device) -> None:
    """Train, from the checkpoint in a folder if there is one."""
    index, count = rank().index, rank().world_size
    data = vdiff.data.splits("digits").train.pixels
    torch.manual_seed(SEED)
    decoder = vdiff.decoder.Categorical(levels=17)
    network = vdiff.nn.LevelHead(vdiff.nn.UNet(1, channels_out=17, width=8), decoder)
    model = vdiff.Denoiser(network, vdiff.parameterization.X())
    schedule = vdiff.schedule.Spline(9.0, -7.0, learn_ends=False)
    objective = vdiff.Objective(model, schedule=schedule, loss=vdiff.objective.VLB(decoder))
    shard(objective.to(device))
    optimizer = torch.optim.AdamW(parameter_groups(objective, lr=2e-3))
    first = torch.zeros((), dtype=torch.long)
    if (out / ".metadata").exists():
        weights, moments = get_state_dict(objective, optimizer)
        state = {"model": weights, "optimizer": moments, "step": first}
        dcp.load(state, checkpoint_id=out)
        set_state_dict(objective, optimizer, model_state_dict=weights, optim_state_dict=moments)
    for step in range(int(first), steps):
        order = torch.randint(len(data), (BATCH,), generator=generator_of(SEED, step, "images"))
        x = data[order[index::count]].to(device)
        u, eps = draws_of_step(x, seed=SEED, step=step, index=index, count=count)
        loss = objective(x, u=u, eps=eps).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.update(all_reduce)
        if step % 50 == 0 and index == 0:
            say(f"step {step}: {vdiff.bits_per_dim(loss.detach(), 64).item():.4f} bits/dim")
    weights, moments = get_state_dict(objective, optimizer)
    state = {"model": weights, "optimizer": moments, "step": torch.tensor(steps)}
    dcp.save(state, checkpoint_id=out)


if __name__ == "__main__":
    main()
