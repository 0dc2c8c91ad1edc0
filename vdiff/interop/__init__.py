"""Convert networks and schedulers from and to diffusers.

    kit = from_diffusers(pipeline.scheduler)
    model = kit.denoiser(pipeline.unet)
    images = sample(model, kit.start(noise, 50), levels=kit.levels(50), step=ddim)

A scheduler determines four things: the log-SNR of each time step, what the network predicts, which
time it gets, and which levels a sampler visits. Samplers here keep z = α x + σ ε with α² + σ² = 1;
diffusers' Euler and EDM schedulers keep z/α, and its flow matching z/(α + σ).
"""

from vdiff.interop.kit import FlowStep, Kit
from vdiff.interop.read import from_diffusers
from vdiff.interop.write import to_diffusers

__all__ = ["FlowStep", "Kit", "from_diffusers", "to_diffusers"]
