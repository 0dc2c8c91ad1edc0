"""Train with Hugging Face accelerate. The draws are a function of (seed, step, slot), so a run
that was stopped resumes bit for bit, and a run on other ranks sees the same noise.

accelerate launch --num_processes 2 examples/accelerate_loop.py --steps 200 --out runs/accelerate
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

import vdiff
from vdiff.groups import parameter_groups
from vdiff.terminal import replace_unencodable, say
from vdiff.times import draws_of_step, generator_of

BATCH, SEED = 64, 0  # over all ranks


def main() -> None:
    replace_unencodable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/accelerate"))
    options = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    index, count = accelerator.process_index, accelerator.num_processes

    data = vdiff.data.splits("digits").train.pixels
    torch.manual_seed(SEED)
    decoder = vdiff.decoder.Categorical(levels=17)
    network = vdiff.nn.LevelHead(vdiff.nn.UNet(1, channels_out=17, width=8), decoder)
    objective = vdiff.Objective(
        vdiff.Denoiser(network, vdiff.parameterization.X()),
        schedule=vdiff.schedule.Spline(9.0, -7.0, learn_ends=False),
        loss=vdiff.objective.VLB(decoder),
    )
    optimizer = torch.optim.AdamW(parameter_groups(objective, lr=2e-3))
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    first = 0
    if (options.out / "step.txt").exists():
        accelerator.load_state(str(options.out))
        first = int((options.out / "step.txt").read_text(encoding="utf-8"))
    for step in range(first, options.steps):
        order = torch.randint(len(data), (BATCH,), generator=generator_of(SEED, step, "images"))
        x = data[order[index::count]].to(accelerator.device)
        u, eps = draws_of_step(x, seed=SEED, step=step, index=index, count=count)
        loss = wrapped(x, u=u, eps=eps).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        objective.update(vdiff.training.all_reduce)  # its schedule learns from all ranks' losses
        if step % 50 == 0:
            bits = vdiff.bits_per_dim(loss.detach(), x[0].numel())
            accelerator.on_main_process(say)(f"step {step}: {bits.item():.4f} bits/dim")
    accelerator.save_state(str(options.out))
    if accelerator.is_main_process:
        (options.out / "step.txt").write_text(str(options.steps), encoding="utf-8")
    accelerator.end_training()


if __name__ == "__main__":
    main()
