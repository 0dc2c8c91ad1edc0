"""Train with Lightning: the objective is the module's loss. Its schedule learns after each step.

python examples/lightning_module.py --steps 200 --devices 2 --out runs/lightning
"""

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import vdiff
from vdiff.groups import parameter_groups
from vdiff.terminal import replace_unencodable, say
from vdiff.times import draws_of_step, generator_of

BATCH, SEED = 64, 0  # over all ranks


class Diffusion(lightning.LightningModule):
    """An objective as a Lightning module. Images, times and noise are functions of the step, so a
    run that was stopped resumes bit for bit."""

    def __init__(self, objective: vdiff.Objective, data: Tensor) -> None:
        super().__init__()
        self.objective, self.data = objective, data

    def training_step(self, *_: Any) -> Tensor:
        step, index, count = self.global_step, self.global_rank, self.trainer.world_size
        generator = generator_of(SEED, step, "images")
        order = torch.randint(len(self.data), (BATCH,), generator=generator)
        x = self.data[order[index::count]].to(self.device)
        u, eps = draws_of_step(x, seed=SEED, step=step, index=index, count=count)
        loss: Tensor = self.objective(x, u=u, eps=eps).mean()
        self.log("bits_per_dim", vdiff.bits_per_dim(loss.detach(), x[0].numel()))
        return loss

    def on_before_zero_grad(self, _: Any) -> None:  # after each step of the optimizer
        self.objective.update(vdiff.training.all_reduce)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.objective, lr=2e-3))


def objective() -> vdiff.Objective:
    """The bound of digits, with a schedule whose shape learns."""
    torch.manual_seed(SEED)
    decoder = vdiff.decoder.Categorical(levels=17)
    network = vdiff.nn.LevelHead(vdiff.nn.UNet(1, channels_out=17, width=8), decoder)
    model = vdiff.Denoiser(network, vdiff.parameterization.X())
    schedule = vdiff.schedule.Spline(9.0, -7.0, learn_ends=False)
    return vdiff.Objective(model, schedule=schedule, loss=vdiff.objective.VLB(decoder))


def main() -> None:
    replace_unencodable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    options = parser.parse_args()
    last = options.out / "last.ckpt"
    several = options.devices > 1
    trainer = lightning.Trainer(
        max_steps=options.steps,
        devices=options.devices,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        strategy="ddp" if several else "auto",
        default_root_dir=options.out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    module = Diffusion(objective(), vdiff.data.splits("digits").train.pixels)
    steps = DataLoader(range(options.steps), batch_size=None)  # the module chooses the images
    trainer.fit(module, steps, ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(last)
    if trainer.is_global_zero:
        say(f"{trainer.callback_metrics['bits_per_dim'].item():.4f} bits/dim")


if __name__ == "__main__":
    main()
