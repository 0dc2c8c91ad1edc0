"""Settings that are wrong: every one is named at once, with what it must be and the nearest name."""

import pytest

from vdiff.training import Config

UNET = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}


@pytest.mark.parametrize(("words", "messages"), [
    (["stpes=3"], ["'stpes' must be a field; got 3 (did you mean 'steps'?)"]),
    (["schedul.name=Cosine"], ["'schedul' must be a field; got {'name': 'Cosine'} (did you mean 'schedule'?)"]),
    (["steps"], ["'override' must be name=value; got 'steps'"]),
    (["=3"], ["'override' must be name=value; got '=3'"]),
    (["schedule.name=cosin"], ["'schedule.name' must be a class of vdiff.schedule; got 'cosin' (did you mean 'Cosine'?)"]),
    (["schedule.name=Tabulated.linear_beta"], ["must be a class of vdiff.schedule; got 'Tabulated.linear_beta' (did you mean 'Tabulated.linear_betas'?)"]),
    (["network.widht=3"], ["'network.widht' must be an argument of UNet; got 3 (did you mean 'width'?)"]),
    (["network.name=MLP"], ["'network.channels' must be an argument of MLP; got 1 (all of it is replaced by network={\"name\": \"MLP\", …})", "'network.dims' must be given for MLP"]),
    (["weighting=Sigmoid"], ["'weighting' must be a class with its arguments, {\"name\": …}; got 'Sigmoid'"]),
    (["weighting.name=MSE", "weighting.schedule.name=Cosin", "weighting.parameterization.name=Eps"], ["'weighting.schedule.name' must be a class of vdiff.schedule; got 'Cosin' (did you mean 'Cosine'?)"]),
    (["network.heads.name=Eps"], ["'network.heads' must be a plain value; got {'name': 'Eps'}"]),
    (["steps=0", "batch=1.5", "lr=-1", "seed=true", "betas=[0.9]", "ema=[]", "decay=linear", "data=cifar-10", "shape=3"],
     ["'steps' must be a whole number of at least 1; got 0", "'batch' must be a whole number", "'lr' must be a finite number greater than 0; got -1", "'seed' must be a whole",
      "'betas' must be two numbers in [0, 1)", "'ema' must be decays in [0, 1)", "'decay' must be one of cosine, constant", "(did you mean 'cifar10'?)", "'shape' must be a list of sizes"]),
    (["lr=NaN", "clip=Infinity", "weight_decay=-0.1", "warmup=-1", "folder="], ["'lr' must", "'clip' must", "'weight_decay' must", "'warmup' must", "'folder' must be text"]),
    (["accumulate=3", "conditional=true", "augment=flip-turn", "bound_weight=0.1", "resampling=true"],
     ["'accumulate' must divide the batch of 128; got 3", "'conditional' must come with a network that has labels", "'augment' must come with a network that takes `augmented`",
      "'bound_weight' must come with a chain", "'resampling' must come with the bound of a chain"]),
    (["chain=10", "bound_weight=0", "weighting.name=Sigmoid"], ["'weighting' must be left out where bound_weight is given"]),
    (["weighting.name=MinSNR"], ["'weighting' must be a total; got the factor {'name': 'MinSNR'} (a factor multiplies a base: {\"name\": \"Product\", \"base\": {\"name\": \"MSE\", …}, \"factor\": {\"name\": \"MinSNR\"}})"]),
    (["weighting.name=Product", "weighting.base.name=P2", "weighting.factor.name=Debiased"], ["'weighting' must be a total; got the factor {'name': 'Product'"]),
    (["decoder=null"], ["'decoder' must be given where the bound is trained; got None"]),
])  # fmt: skip
def test_what_is_wrong_is_said_of_all_fields_at_once(words: list[str], messages: list[str]) -> None:
    with pytest.raises(ValueError, match="Config: argument ") as refused:
        Config(network=UNET).override(words)
    lines = str(refused.value).splitlines()
    assert all(line.startswith("Config: argument '") for line in lines)
    for message in messages:
        assert any(message in line for line in lines), f"{message}\nis not in\n{refused.value}"


def test_a_factor_times_a_total_is_a_weighting() -> None:
    words = ["weighting.name=Product", "weighting.base.name=P2", "weighting.factor.name=ELBO"]
    assert repr(Config(network=UNET).override(words).objective().weighting) == "Product(P2(gamma=1.0, k=1.0), ELBO())"
