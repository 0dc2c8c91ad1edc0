"""A run is of its config: another config, older weights, a header that is sealed."""

import json
import shutil

import pytest
import torch
from points import points, run_until
from structures import CONFIG
from torch import Tensor

from vdiff.cli import main
from vdiff.parameterization import V
from vdiff.schedule import Adaptive
from vdiff.training import Config, Run
from vdiff.training.checkpoint import checkpoints
from vdiff.weighting import MSE


def test_a_config_of_another_run_is_not_taken_for_a_run_s_own(tmp_path, capsys):
    """Same shapes, another schedule: with the averaged weights, and with a checkpoint alone."""
    one, other = tmp_path / "one", tmp_path / "other"
    run_until(one, CONFIG)
    run_until(other, points(**CONFIG.asdict() | {"schedule": {"name": "Cosine"}, "lr": 0.1}))
    own = (one / "config.json").read_text()
    for weights in ("ema.safetensors", None):
        shutil.copy(other / "config.json", one / "config.json")
        if weights is None:
            (one / "ema.safetensors").unlink()
        with pytest.raises(
            ValueError,
            match=(
                r"Run.load: argument 'config' must be the one that .* was trained with; got "
                r"schedule: .*Cosine.*lr: 0.1"
            ),
        ):
            Run(one).load()
        for words in (
            ["evaluate", str(one), "--data", "digits", "--quiet"],
            ["sample", str(one), "--quiet"],
        ):
            assert main(words) == 2
            assert "config.json of another run" in capsys.readouterr().err
        (one / "config.json").write_text(own)
        Run(one).load()


@pytest.mark.parametrize("field", [{"accumulate": 2}, {"compile": True}, {"folder": "/elsewhere"}])
def test_how_a_step_is_computed_may_change(field, tmp_path):
    run_until(tmp_path, CONFIG)
    changed = json.loads((tmp_path / "config.json").read_text()) | field
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert Run(tmp_path).load().model.trained is not None


def test_older_weights_do_not_say_their_config_and_are_loaded(tmp_path):
    """With a checksum of tensors alone in their header, or none, as earlier versions wrote
    them."""
    from safetensors.torch import save_file

    with Run.open(tmp_path, CONFIG) as run:
        run.save(CONFIG.objective())
    tensors = run.load().state_dict()
    for header in (None, {"sha256": old_checksum(tensors)}):
        save_file(tensors, tmp_path / "ema.safetensors", header)
        with pytest.warns(UserWarning, match="does not say with which config"):
            loaded = Run(tmp_path).load()
        assert all(
            torch.equal(a, b)
            for a, b in zip(loaded.state_dict().values(), tensors.values(), strict=True)
        )
    save_file(tensors, tmp_path / "ema.safetensors", {"sha256": "0" * 64})
    with pytest.raises(ValueError, match="be as it was written; got another checksum"):
        Run(tmp_path).load()


def old_checksum(tensors: dict[str, Tensor]) -> str:
    import hashlib

    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        whole.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def test_what_the_header_says_is_sealed(tmp_path):
    run_until(tmp_path, CONFIG)
    path = tmp_path / "ema.safetensors"
    raw = path.read_bytes()
    for old, new in ((b"-7.0", b"-6.0"), (b'\\"steps\\": 2', b'\\"steps\\": 3')):
        assert old in raw
        path.write_bytes(raw.replace(old, new, 1))
        with pytest.raises(ValueError, match="be as it was written; got another checksum"):
            Run(tmp_path).load()


def test_an_outline_costs_no_memory_and_no_random_numbers():
    config = Config(
        network={"name": "VDMUNet", "width": 64, "depth": 4},
        schedule={"name": "Linear", "logsnr_max": 13.3, "logsnr_min": -5.0},  # those of its time
        shape=[3, 32, 32],
        level_head=False,
        decoder=None,
        weighting={"name": "Sigmoid"},
    )
    state = torch.get_rng_state()
    outline = config.objective(outline=True)
    assert torch.equal(state, torch.get_rng_state())
    assert {p.device.type for p in outline.model.parameters()} == {"meta"}
    assert (
        outline.schedule(torch.tensor(0.5)).item()
        == config.objective().schedule(torch.tensor(0.5)).item()
    )


def test_the_checkpoint_says_what_it_is_of(tmp_path):
    run_until(tmp_path, CONFIG)
    assert len(checkpoints(tmp_path / "checkpoints")) == 1
    _, record, data = Run(tmp_path).loaded()
    assert (record["read from"], record["step"]) == ("ema.safetensors", 2)
    (tmp_path / "ema.safetensors").unlink()
    _, again, same = Run(tmp_path).loaded()
    assert (again["read from"], again["step"]) == (
        "checkpoints/step-00000002/ema-0.9.safetensors",
        2,
    )
    assert data == same != []
    assert {name: again[name] for name in ("config", "parameterization", "trained schedule")} == {
        "config": record["config"], "parameterization": "V(sigma_data=1.0)",
        "trained schedule": "Linear(logsnr_max=10.0, logsnr_min=-7.0)",
    }  # fmt: skip


def test_adaptive_state_in_the_run_of_its_config():
    assert isinstance(points(schedule={"name": "Adaptive"}).objective().schedule, Adaptive)
    with pytest.raises(ValueError, match="be fixed"):
        MSE(Adaptive(), V())
