"""Training over tokens: the loop, its draws, validation, resuming, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from registry import COUNTED, PROCESSES
from tokens import expected_loss, gauss, pairs
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vdiff import Objective
from vdiff.denoiser import logsnr_time
from vdiff.discrete import Hybrid, LeaveOneOut, Masked, TokenDenoiser, Uniform
from vdiff.objective import Weighted
from vdiff.schedule import Adaptive, Linear, Spline
from vdiff.times import draws_of_step, generator_of
from vdiff.training import Config, Run, Validation, train
from vdiff.training.batches import Batches
from vdiff.weighting import Sigmoid

ENDS = Linear(12.0, -12.0)


class Network(nn.Module):
    """Two tokens, given λ or not."""

    def __init__(self, states: int = 4, vocabulary: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Embedding(states, 8), nn.Linear(17, 2 * vocabulary)

    def forward(self, z: Tensor, logsnr: Tensor | None = None) -> Tensor:
        level = torch.zeros(len(z)) if logsnr is None else 0.1 * logsnr
        features = torch.cat([self.first(z).flatten(1), level[:, None]], 1)
        return self.last(features.tanh()).view(len(z), 2, -1)


def objective(kind="mask", **loss):
    torch.manual_seed(0)
    process = (PROCESSES | COUNTED)[kind]()
    time = None if process.one_posterior else logsnr_time
    model = TokenDenoiser(Network(process.states, process.vocabulary), process, time=time)
    return Objective(model, schedule=ENDS, loss=Weighted(**loss))


def config(**settings):
    own = {"network": {"name": "own.py:build"}, "shape": [2], "weighting": {"name": "ELBO"}}
    small = {"batch": 32, "steps": 6, "lr": 0.01, "warmup": 0, "ema": [0.9], "decay": "constant"}
    return Config(**own | {"decoder": None, "level_head": False} | small | settings)


def samples(n=256):
    log_p, x = pairs()
    generator = torch.Generator().manual_seed(0)
    return x[torch.multinomial(log_p.exp(), n, replacement=True, generator=generator)]


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.parameters()])


@pytest.mark.parametrize("kind", [*PROCESSES, *COUNTED])
def test_training_lowers_the_exact_bound(kind):
    log_p, x = pairs()
    log: list[dict] = []
    settings = config(steps=200, batch=128, lr=0.03)
    trained = train(objective(kind), samples(4096), settings, log=log.append, quiet=True)
    if kind in COUNTED:  # the bound is that of masks, each on its own
        trained.model = TokenDenoiser(trained.model.network, Masked(3))
        kind = "mask"

    def excess(one):
        with torch.no_grad():
            bound = expected_loss(one.model, x, ENDS, *gauss(40))
        return (log_p.exp() * (bound + log_p)).sum()

    assert excess(trained) < 0.3 * excess(objective(kind))
    assert log[-1]["skipped"] == 0
    assert kind == "mask" or trained.model.trained == (12.0, -12.0)


def test_micro_batches_and_dtypes_change_rounding_alone():
    whole = train(objective(), samples(), config(), quiet=True)
    for data, accumulate in [(samples(), 4), (samples().to(torch.uint8), 1)]:
        other = train(objective(), data, config(accumulate=accumulate), quiet=True)
        torch.testing.assert_close(weights(other), weights(whole), rtol=1e-4, atol=1e-6)


def test_the_noise_of_a_slot_is_its_own():
    batches = Batches(samples(), config(), process=Masked(3))
    batch = batches(5, 0)
    assert (batch.eps.dtype, batch.data.dtype) == (torch.float64, torch.int64)
    own = torch.rand(2, dtype=torch.float64, generator=generator_of(0, 5, 3))
    assert torch.equal(batch.eps[3], own)
    process = Masked(3)
    draw = draws_of_step(batch.data, seed=0, step=5, noise=lambda x, g: process.noise(x, None, g))
    torch.testing.assert_close(draw, (batch.u, batch.eps), rtol=0, atol=0)


def test_a_run_resumes_bit_for_bit(tmp_path):
    straight = train(objective(), samples(), config(), quiet=True)
    with Run.open(tmp_path / "a", config()) as run:
        stopped = objective()

        def stop(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(stopped, samples(), config(), run=run, every=3, validate=stop, quiet=True)
        store = train(objective(), samples(), config(), run=run, every=3, quiet=True)
    assert torch.equal(weights(store), weights(straight))
    with Run.open(tmp_path / "b", config()) as run:
        train(objective(), samples(), config(), run=run, every=3, quiet=True)
    loaded = Run(tmp_path / "b").load(objective=objective())
    assert torch.equal(weights(loaded), weights(straight))


def test_padding_is_absent():
    """Tokens beyond an end are outside of the loss, whatever they are."""
    data = samples()
    data[::2, 1] = 3  # a padding token beyond the vocabulary
    other = data.clone()
    other[::2, 1] = 1

    def padding(x, generator):
        absent = torch.zeros_like(x, dtype=torch.bool)
        absent[1] = x[1] == 3
        return ~absent, absent

    trained = train(objective(), data, config(), mask=padding, quiet=True)
    assert torch.isfinite(weights(trained)).all()
    with pytest.raises(ValueError, match=r"argument 'data' must lie in 0 … 2"):
        train(objective(), data, config(), quiet=True)


def test_a_prompt_is_given():
    def given(x, generator):
        return torch.tensor([False, True])

    trained = train(objective(), samples(), config(), mask=given, quiet=True)
    assert not torch.equal(weights(trained), weights(objective()))


@pytest.mark.parametrize("kind", PROCESSES)
def test_validation_is_the_bound_in_bits_per_token(kind):
    one, x, log = objective(kind, weighting=Sigmoid(1.0)), pairs()[1], []
    validate = Validation(x, draws=400, replicates=2)
    with torch.no_grad():
        exact = expected_loss(one.model, x, ENDS, *gauss(60))
        exact += one.model.process.prior(x, -12.0) + one.model.process.reconstruction(x, 12.0)
    found = validate(one)
    assert abs(found.value - exact.mean().item() / (2 * math.log(2))) < 5 * found.monte_carlo
    assert validate(one).value == found.value
    train(one, samples(), config(), validate=validate, log=log.append, quiet=True)
    assert log[-1]["selection_bits_per_token"] > 0


def test_bad_tokens_are_found_before_the_first_step():
    bad = samples()
    bad[-1, 0] = 3
    log: list[dict] = []
    with pytest.raises(ValueError, match=r"the mask is no value of the data"):
        train(objective(), bad, config(batch=2, steps=1), log=log.append, quiet=True)
    with pytest.raises(TypeError, match=r"argument 'data' must be integer tokens"):
        train(objective(), samples().float(), config(), quiet=True)
    with pytest.raises(ValueError, match=r"argument 'augment' must be 'none' for tokens"):
        train(objective(), samples(), config(augment="flip"), quiet=True)
    with pytest.raises(ValueError, match=r"argument 'data' must lie in 0 … 2"):
        train(objective(), TensorDataset(bad[-2:]), config(batch=2, steps=1), quiet=True)


OWN = {"name": "own.py:build"}


def test_a_config_builds_a_model_over_tokens():
    settings = Config(network=OWN, process={"name": "Masked", "vocabulary": 3}, shape=[2])
    assert settings.parameterization == {"name": "Posterior"}
    assert (settings.decoder, settings.level_head) == (None, False)
    one = settings.objective(Network())
    assert (repr(one.model.process), one.model.time) == ("Masked(3)", None)
    assert repr(one.loss) == "Weighted(ELBO())"
    again = Config.from_dict(settings.asdict())
    assert again == settings
    uniform = settings.override(
        ["process.name=Uniform", "parameterization.name=LeaveOneOut"]
    ).objective(Network(3))
    assert uniform.model.time is logsnr_time
    assert repr(uniform.model.parameterization) == "LeaveOneOut()"
    gidd = replace(settings, process={"name": "Hybrid.gidd", "vocabulary": 3, "uniform": 0.2})
    assert repr(gidd.objective(Network()).model.process) == "Hybrid(3, gidd(uniform=0.2))"
    given = TokenDenoiser(Network(), Masked(3))
    assert settings.objective(given).model is given


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"decoder": {"name": "Categorical", "levels": 4}}, "decoder' must be left out"),
        ({"parameterization": {"name": "V"}}, "be one of LeaveOneOut, Posterior with a process"),
        ({"augment": "flip"}, "'augment' must be 'none' for tokens"),
        ({"process": {"name": "Maskd", "vocabulary": 3}}, "did you mean 'Masked'"),
        ({"process": None, "parameterization": {"name": "Posterior"}}, "come with a process"),
    ],
)
def test_fields_that_do_not_fit_tokens(wrong, text):
    fields = {"network": OWN, "process": {"name": "Masked", "vocabulary": 3}, "shape": [2]}
    with pytest.raises(ValueError, match=text):
        Config(**fields | wrong)


@pytest.mark.parametrize("process", [Masked(3), Uniform(3), Hybrid.gidd(3, uniform=0.2)], ids=repr)
def test_an_objective_over_tokens_is_saved_and_loaded(process, tmp_path):
    torch.manual_seed(0)
    time = None if process.one_posterior else logsnr_time
    model = TokenDenoiser(Network(process.states), process, LeaveOneOut(), time=time)
    one = train(
        Objective(model, schedule=ENDS, loss=Weighted(Sigmoid(1.0))),
        samples(), config(weighting={"name": "Sigmoid", "bias": 1.0}), quiet=True,
    )  # fmt: skip
    one.save_pretrained(tmp_path)
    same = Objective.from_pretrained(tmp_path, network=Network(process.states))
    t, eps = torch.full((4,), 0.4), torch.rand(4, 2, dtype=torch.float64)
    x = samples(4)
    assert torch.equal(same(x, t=t, eps=eps), one(x, t=t, eps=eps))
    assert repr(same.model.process) == repr(process)
    assert "tokens 0 … 2" in (tmp_path / "README.md").read_text()


def test_a_process_of_your_own_is_given_again(tmp_path):
    process = PROCESSES["hybrid"]()
    model = TokenDenoiser(Network(4), process, time=logsnr_time)
    Objective(model, schedule=ENDS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"argument 'process' must be given again"):
        Objective.from_pretrained(tmp_path, network=Network(4))
    same = Objective.from_pretrained(tmp_path, network=Network(4), process=process)
    assert same.model.process is process


@pytest.mark.parametrize("learned", [Spline, Adaptive])
def test_a_run_with_a_learned_schedule_resumes(learned, tmp_path):
    def made():
        torch.manual_seed(0)
        options = {"learn_ends": False} if learned is Spline else {"bins": 5, "warmup": 1}
        model = TokenDenoiser(Network(), Masked(3))
        return Objective(model, schedule=learned(9.0, -9.0, **options))

    def state(one):
        return {name: v for name, v in one.state_dict().items() if name.startswith("schedule")}

    settings = config(steps=8, ema=[0.0])
    straight = train(made(), samples(), settings, quiet=True)
    assert any(not torch.equal(v, state(made())[name]) for name, v in state(straight).items())
    with Run.open(tmp_path, settings) as run:

        def stop(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(made(), samples(), settings, run=run, every=4, validate=stop, quiet=True)
        resumed = train(made(), samples(), settings, run=run, quiet=True)
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_held_out_data_that_are_no_tokens_are_refused_before_the_first_step():
    log: list[dict] = []
    for wrong, words in ((samples() + 3, "lie in 0 … 2"), (samples() + 0.5, "integer tokens")):
        with pytest.raises((ValueError, TypeError), match=words):
            train(objective(), samples(), config(), validate=Validation(wrong), log=log.append)
        with pytest.raises((ValueError, TypeError), match=words):
            Validation(wrong)(objective())
    assert not log
    padded = samples().index_fill(1, torch.tensor([1]), -100)
    mask = {"mask": lambda x, g: (x >= 0, x < 0)}
    assert math.isfinite(Validation(padded, **mask)(objective()).value)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ([[0, 1], [2, 1]], r"torch\.tensor\(ids\)"),
        ([0, 1, 2], r"torch\.tensor\(ids\)"),
        ({"input_ids": torch.zeros(4, 2).long()}, r"data\['input_ids'\]"),
    ],
)
def test_ids_that_are_no_tensor_get_a_hint_about_tokens(data, hint):
    with pytest.raises(TypeError, match=hint) as caught:
        train(objective(), data, config(), quiet=True)
    assert "PILToTensor" not in str(caught.value)
