"""A folder to share: what is saved is built again to the bit, or refused in a line."""

import json
from pathlib import Path

import pytest
import torch
from points import data_of, points
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from watch import nothing_happens

from vdiff import Denoiser, Objective, evaluate
from vdiff import nn as networks
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.denoiser import TableStep, edm_time
from vdiff.errors import InvalidValue
from vdiff.losses import VLB, Hybrid, Weighted
from vdiff.parameterization import Eps, V, X
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Adaptive, Cosine, LearnedLinear, Linear, Spline, Tabulated
from vdiff.training import train
from vdiff.training.entries import make_network
from vdiff.training.weights import save_tensors
from vdiff.variance import LearnedRange
from vdiff.weighting import Sigmoid

TABLE = Tabulated.linear_betas()


class MyNet(nn.Module):
    """A network of a user."""

    def __init__(self, dims: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(dims, dims)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.layer(z) + t[:, None]


def half(logsnr: Tensor) -> Tensor:
    return logsnr / 2


def mlp(**options: int) -> nn.Module:
    return networks.MLP(4, width=8, depth=1, features=8, **options)


def levels() -> nn.Module:
    unet = networks.UNet(1, channels_out=17, width=8, multipliers=(1,))
    return networks.LevelHead(unet, Categorical(17))


MADE = {
    "bound": lambda: Objective(Denoiser(mlp(), V()), schedule=Linear(), loss=VLB(Categorical(17))),
    "learned": lambda: Objective(
        Denoiser(mlp(), Eps(), time=edm_time), schedule=Spline(knots=5), loss=VLB(Categorical(17))
    ),
    "resampled": lambda: Objective(
        Denoiser(mlp(dims_out=8), Eps(), time=TableStep(TABLE), variance=LearnedRange()),
        schedule=TABLE,
        loss=VLB(DiscretizedGaussian(17), steps=999, resampling=LossSecondMoment(999)),
    ),
    "hybrid": lambda: Objective(
        Denoiser(mlp(dims_out=8), Eps(), variance=LearnedRange()),
        schedule=TABLE,
        loss=Hybrid(999, decoder=DiscretizedGaussian(17, uses_network=True)),
    ),
    "weighted": lambda: Objective(
        Denoiser(mlp(), V()), schedule=Adaptive(bins=7), loss=Weighted(Sigmoid(1.0))
    ),
    "independent": lambda: Objective(
        Denoiser(mlp(), V()), schedule=Linear(), loss=Weighted(independent=(1,))
    ),
    "levels": lambda: Objective(
        Denoiser(levels(), X()), schedule=Linear(9.0, -7.0), loss=VLB(Categorical(17))
    ),
}


def losses(objective: Objective) -> Tensor:
    n, shape = 6, (1, 4, 4) if isinstance(objective.model.network, networks.LevelHead) else (4,)
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(17, (n, *shape), generator=generator)
    x = data if objective.decoder is not None else data / 8 - 1
    eps = torch.randn((n, *shape), generator=generator)
    return objective.eval()(x, u=torch.linspace(0.01, 0.97, n), eps=eps).detach()


@pytest.mark.parametrize("name", MADE)
def test_what_is_saved_is_built_again(name, tmp_path):
    objective = MADE[name]()
    with torch.no_grad():
        for p in objective.parameters():
            p += 0.01 * torch.randn_like(p)
    objective.save_pretrained(tmp_path / "new" / "folder")
    Objective.from_pretrained(tmp_path / "new" / "folder")  # it reads annotations
    with nothing_happens():
        loaded = Objective.from_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(losses(loaded), losses(objective))
    assert not loaded.training
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_what_training_left_comes_along(tmp_path):
    config = points(schedule={"name": "Adaptive", "bins": 5, "warmup": 1}, steps=8)
    averaged = train(config.objective(), data_of(config), config, quiet=True)
    averaged.save_pretrained(tmp_path)
    loaded = Objective.from_pretrained(tmp_path)
    t = torch.linspace(0.1, 0.9, 9)
    assert torch.equal(loaded.schedule(t), averaged.schedule(t))
    assert loaded.trained_on == averaged.trained_on != ()
    assert loaded.model.trained == averaged.model.trained
    assert averaged.trained_on[0] in (tmp_path / "README.md").read_text()


def test_learned_ends_and_half_precision_are_kept(tmp_path):
    objective = Objective(Denoiser(mlp().bfloat16(), V()), schedule=LearnedLinear(9.0, -4.0))
    moved = objective.schedule.state_dict()
    other = LearnedLinear(11.0, -6.0).state_dict()
    assert moved.keys() == other.keys()
    objective.schedule.load_state_dict(other)
    objective.save_pretrained(tmp_path)
    loaded = Objective.from_pretrained(tmp_path)
    assert loaded.schedule.logsnr_max == pytest.approx(11.0)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def own() -> Objective:
    model = Denoiser(MyNet(), V(), time=half, output=torch.neg)
    return Objective(model, schedule=Linear(9.0, -7.0), loss=VLB(Categorical(17)))


def test_the_lines_of_a_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objective = Objective(Denoiser(MyNet(), V()), schedule=Cosine())
    objective.save_pretrained("folder")
    loaded = Objective.from_pretrained("folder", network=MyNet())
    assert torch.equal(losses(loaded), losses(objective))
    with pytest.raises(TypeError, match="'folder' must be the path of a folder; got 3"):
        objective.save_pretrained(3)
    with pytest.raises(TypeError, match="'folder' must be the path of a folder; got None"):
        Objective.from_pretrained(None)


def test_own_parts_are_given_again(tmp_path):
    objective = own()
    objective.save_pretrained(tmp_path)
    given = {"network": MyNet(), "time": half, "output": torch.neg}
    loaded = Objective.from_pretrained(tmp_path, **given)
    assert torch.equal(losses(loaded), losses(objective))
    for name in given:
        rest = {other: part for other, part in given.items() if other != name}
        message = rf"from_pretrained: argument '{name}' must be given again; got None \(plain data"
        with pytest.raises(ValueError, match=message) as caught:
            Objective.from_pretrained(tmp_path, **rest)
        assert f"from_pretrained(folder, {name}=…)" in str(caught.value)
    card = (tmp_path / "README.md").read_text()
    assert "test_pretrained.MyNet" in card
    assert "network=…, time=…, output=…" in card


def test_a_denoiser_that_was_told_of_a_field_is_told_again(tmp_path):
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((4,), 0.3))

        def forward(self, z, logsnr):
            return self.scale * z * logsnr.sigmoid().to(z)

    objective = Objective(Denoiser(Told(), V(), field=True), schedule=Linear())
    objective.save_pretrained(tmp_path)
    loaded = Objective.from_pretrained(tmp_path, network=Told())
    assert loaded.model.field
    x, mask = torch.ones(2, 4), torch.tensor([True, True, False, False])
    options = {"u": torch.tensor([0.2, 0.7]), "eps": torch.ones(2, 4), "mask": mask}
    assert torch.equal(loaded(x, **options), objective.eval()(x, **options))
    assert "takes a λ for each dimension" in (tmp_path / "README.md").read_text()
    changed(tmp_path, field=1)
    with pytest.raises(ValueError, match="'field' must be true; got 1"):
        Objective.from_pretrained(tmp_path, network=Told())
    own_attribute = Told()
    own_attribute.field = True
    Objective(Denoiser(own_attribute, V()), schedule=Linear()).save_pretrained(tmp_path / "own")
    assert "field" not in json.loads((tmp_path / "own" / "config.json").read_text())


def test_a_part_that_is_given_replaces_the_one_in_the_config(tmp_path):
    MADE["bound"]().save_pretrained(tmp_path)
    loaded = Objective.from_pretrained(tmp_path, network=mlp(), schedule=Cosine())
    assert repr(loaded.schedule) == repr(Cosine())
    loss = VLB(Categorical(9))
    assert Objective.from_pretrained(tmp_path, loss=loss).decoder.levels == 9


class Halves(nn.Module):
    """A model of a user."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Denoiser(MyNet(), V())

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Tensor):
        return self.inner(z, logsnr)


def test_an_own_model_is_given_whole(tmp_path):
    objective = Objective(Halves(), schedule=Linear(9.0, -7.0), loss=VLB(Categorical(17)))
    objective.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'model' must be given again"):
        Objective.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'network' must be a part of this objective"):
        Objective.from_pretrained(tmp_path, model=Halves(), network=MyNet())
    loaded = Objective.from_pretrained(tmp_path, model=Halves())
    assert torch.equal(
        loaded.model.inner.network.layer.weight, objective.model.inner.network.layer.weight
    )


def test_parts_and_networks_that_do_not_fit_are_refused(tmp_path):
    own().save_pretrained(tmp_path)
    parts = {"time": half, "output": torch.neg}
    with pytest.raises(ValueError, match="must have the tensors of this architecture"):
        Objective.from_pretrained(tmp_path, network=MyNet(3), **parts)
    with pytest.raises(ValueError, match=r"'tiem' must be a part.*did you mean 'time'"):
        Objective.from_pretrained(tmp_path, network=MyNet(), tiem=half)
    with pytest.raises(ValueError, match="'weighting' must be a part of this objective"):
        Objective.from_pretrained(tmp_path, network=MyNet(), weighting=Sigmoid(), **parts)
    with pytest.raises(TypeError, match="'network' must be"):
        Objective.from_pretrained(tmp_path, network="MyNet")
    with pytest.raises(TypeError, match="'network' must be the network alone; got Denoiser"):
        Objective.from_pretrained(tmp_path, network=Denoiser(MyNet(), V()), **parts)
    with pytest.raises(ValueError, match="'network' must have memory for its weights; got the m"):
        Objective.from_pretrained(tmp_path, network=MyNet().to("meta"), **parts)
    with pytest.raises(ValueError, match="'folder' must hold a saved objective"):
        Objective.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'folder' must hold model.safetensors; got .*copy all"):
        Objective.from_pretrained(tmp_path, network=MyNet(), **parts)


def changed(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"'config.json' must have format 1; got 2 \(a newer version"),
        ({"extra": 1}, "a difference in extra"),
        ({"model": {"own": "m"}}, "a difference in call, network"),
        ({"network": {"name": "os.system"}}, "'network.name' must be a class of vdiff.nn"),
        ({"network": {"name": "MLP", "dims": 2, "width": 10**9}}, "'network.width' must be at"),
        ({"schedule": {"name": "Cosine", "shfit": 1}}, "did you mean 'shift'"),
        ({"loss": {"name": "VLB", "steps": {}, "resampling": None}}, "'loss.steps' must be"),
        ({"loss": 3}, "'loss' must be a class with its arguments; got 3"),
        ({"output": {"name": "eval"}}, "'output' must be null"),
        ({"time": {"name": "flow_time"}}, "must be saved with this config.json"),
    ],
)
def test_a_config_that_was_changed_is_refused(changes, message, tmp_path):
    MADE["bound"]().save_pretrained(tmp_path)
    changed(tmp_path, **changes)
    with nothing_happens(), pytest.raises(ValueError, match=message):
        Objective.from_pretrained(tmp_path)


def test_a_network_that_takes_all_memory_is_refused(tmp_path):
    MADE["bound"]().save_pretrained(tmp_path)
    changed(tmp_path, network={"name": "UNet", "channels": 1, "width": 2**19})
    config = json.loads((tmp_path / "config.json").read_text())
    save_tensors(tmp_path / "model.safetensors", {}, {"config": config})
    with pytest.raises(ValueError, match="'network' must have at most"):
        Objective.from_pretrained(tmp_path)


def test_a_network_is_built_after_its_weights_were_checked(tmp_path, monkeypatch):
    MADE["bound"]().save_pretrained(tmp_path)
    changed(tmp_path, network={"name": "MLP", "dims": 4, "width": 16})
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    save_tensors(tmp_path / "model.safetensors", tensors, {"config": config})
    outlines = []

    def recorded(entry, levels, *, outline=False):
        outlines.append(outline)
        return make_network(entry, levels, outline=outline)

    monkeypatch.setattr("vdiff.training.pretrained.make_network", recorded)
    with pytest.raises(ValueError, match="must have the tensors of this architecture"):
        Objective.from_pretrained(tmp_path)
    assert outlines == [True]


def test_weights_that_were_changed_are_refused(tmp_path):
    MADE["bound"]().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({name: value + 1 for name, value in tensors.items()}, path)
    with pytest.raises(ValueError, match="must be as it was written"):
        Objective.from_pretrained(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="safetensors"):
        Objective.from_pretrained(tmp_path)
    path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InvalidValue, match=r"must hold model.safetensors"):
        Objective.from_pretrained(tmp_path)


def test_a_part_that_was_changed_after_it_was_made_is_refused(tmp_path):
    objective = MADE["weighted"]()
    objective.loss.weighting.bias = 3.0
    with pytest.raises(ValueError, match=r"'objective' must have the parts.*bias: 3.0.* 1.0"):
        objective.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_table_that_was_loaded_is_saved(tmp_path):
    objective = Objective(
        Denoiser(mlp(), V()), schedule=Tabulated([5.0, 1.0, -4.0]), loss=Weighted(steps=2)
    )
    objective.schedule.load_state_dict(Tabulated([8.0, 2.0, -6.0]).state_dict())
    objective.save_pretrained(tmp_path)
    assert Objective.from_pretrained(tmp_path).schedule.ends() == (8.0, -6.0)


@pytest.mark.filterwarnings("ignore:.*more than uniform noise")
def test_the_card_says_what_is_in_the_folder(tmp_path):
    objective = MADE["bound"]()
    options = {"schedule": objective.schedule, "decoder": objective.decoder}
    report = evaluate(objective.model, torch.randint(17, (8, 4)), **options)
    objective.save_pretrained(tmp_path, report=report)
    card = (tmp_path / "README.md").read_text()
    assert str(report) in card
    for text in ("MLP(dims=4", "V(sigma_data=1.0)", "Linear(", "Categorical(levels=17", "unknown"):
        assert text in card
    assert f"bits/dim | {report.total}" in card
    assert "λ = 13.3 (data) to -5 (noise)" in card
    assert "| data | whole numbers 0 … 16, which the decoder encodes |" in card
    assert "    vdiff evaluate . --data test_photos/" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3}  # a bar in a cell would end it
    with torch.no_grad():
        next(objective.model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match=r"'report' must be of these weights"):
        objective.save_pretrained(tmp_path, report=report)
    with pytest.raises(TypeError, match="'report' must be"):
        objective.save_pretrained(tmp_path, report=3.77)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    objective = Objective(Denoiser(networks.UNet(1, width=8), X()), schedule=Cosine())
    (tmp_path / "config.json").write_text('{"network": {}}')  # a run's
    for _ in range(2):
        with pytest.raises(InvalidValue, match="must be empty, or hold a saved objective"):
            objective.save_pretrained(tmp_path)
        assert (tmp_path / "config.json").read_text() == '{"network": {}}'
    objective.save_pretrained(tmp_path / "mine")
    objective.save_pretrained(tmp_path / "mine")
