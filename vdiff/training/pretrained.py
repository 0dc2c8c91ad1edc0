"""An objective as a folder to share: config.json, model.safetensors and README.md, a model card.

Loading runs nothing but the library's own classes, and unpickles nothing.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vdiff._validate import require
from vdiff.decoder import Levels
from vdiff.denoiser import Denoiser
from vdiff.discrete import TokenDenoiser
from vdiff.disk import absolute, write_text
from vdiff.errors import InvalidType, InvalidValue, did_you_mean
from vdiff.likelihood.digest import weights_digest
from vdiff.likelihood.protocol import versions
from vdiff.likelihood.report import Report
from vdiff.objective import Objective
from vdiff.training.entries import Entry, entry_errors, entry_of, is_own, make, make_network
from vdiff.training.loading import fill
from vdiff.training.safe_json import json_repr, printable_name, read_json
from vdiff.training.structure import VALUES, parts_of, shortened
from vdiff.training.weights import (
    check_tensors,
    invalid_file,
    read_weights,
    save_tensors,
    size_limit,
    texts,
)

Config = dict[str, Entry]
FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
OF_MODEL = ("network", "parameterization", "time", "call", "output", "variance")
OF_TOKENS = ("network", "process", "parameterization", "time")
FIELD = "field"  # true where a denoiser has field=True; missing elsewhere
LONG = 8  # numbers of a list in the card


def save(objective: Objective, folder: Any, report: Any = None) -> None:
    """`Objective.save_pretrained`."""
    folder = _path(folder)
    parts = _parts(objective)
    config = {n: v if n == FIELD else entry_of(n, v) for n, v in parts.items()}
    _check_rebuilt(objective, config, parts)
    if not isinstance(report, Report | None):
        raise InvalidType("report", "be a Report", repr(report), "evaluate(…) returns one")
    if report is not None and "model" in report.protocol:
        same = report.protocol["model"] == weights_digest(objective.model)
        require(same, "report", "be of these weights", "that of others", "evaluate them")
    config = {"format": FORMAT, **config}
    facts = {"config": config, "data": list(objective.trained_on), "versions": versions()}
    _check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, objective.state_dict(), facts)
    write_text(folder / CARD, _card(objective, config, report))
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _check_free(folder: Path) -> None:
    """Raise for a folder with other things in it: a run has a config.json too."""
    if folder.is_dir() and any(folder.iterdir()):
        hint = "another folder: a run's config.json would be overwritten"
        require(is_saved(folder), "folder", "be empty, or hold a saved objective", folder, hint)


def load(folder: Any, given: Mapping[str, Any]) -> Objective:
    """`Objective.from_pretrained`."""
    folder = _path(folder)
    came, hint = f"{folder}, without a {CONFIG}", "objective.save_pretrained(folder) writes one"
    require((folder / CONFIG).is_file(), "folder", "hold a saved objective", came, hint)
    config, path = read_json(folder / CONFIG), folder / WEIGHTS
    _check_config(config, given)
    _check_network(given.get("network"))
    came, hint = f"{folder} without it", "copy all files of the folder"
    require(path.is_file(), "folder", f"hold {WEIGHTS}", came, hint)
    outline = _build(config, given, outline=True)
    weights = read_weights(path, seal=True, limit=size_limit(outline.state_dict()))
    if weights.facts.get("config") != config:
        raise invalid_file(path, f"be saved with this {CONFIG}", "another one in it")
    tensors = check_tensors(path, weights.tensors, outline.state_dict())
    objective = _build(config, given)
    fill(objective, tensors)
    objective.trained_on = tuple(texts(path, weights.facts, "data"))
    return objective.eval()


def is_saved(folder: Path) -> bool:
    """Whether this is a folder that `save` wrote: a run has a config.json too."""
    path = folder / CONFIG
    return path.is_file() and "format" in read_json(path)


def load_with(folder: Path, other: Objective | None) -> Objective:
    """`load`, with the parts that the config only names taken from another objective."""
    config, parts = read_json(folder / CONFIG), {} if other is None else _parts(other)
    own = [name for name, entry in config.items() if is_own(entry)]
    given = {name: parts[name] for name in own if is_own(entry_of(name, parts.get(name)))}
    missing = ", ".join(printable_name(config[name]["own"]) for name in own if name not in given)
    what = f"name a builder of what plain data cannot say: {missing}"
    hint = "FILE.py:NAME, a function that returns the Denoiser or the Objective"
    require(not missing, "model", what, None if other is None else "others", hint)
    return load(folder, given)


def _path(folder: Any) -> Path:
    if not isinstance(folder, str | Path):
        raise InvalidType("folder", "be the path of a folder", repr(folder))
    return absolute("folder", folder)


def _parts(objective: Objective) -> dict[str, Any]:
    """The parts of an objective by name: those of its model, its schedule, those of its loss."""
    model, loss = objective.model, objective.loss
    parts: dict[str, Any] = {"model": model}
    if isinstance(model, Denoiser | TokenDenoiser) and type(model) in (Denoiser, TokenDenoiser):
        names = OF_MODEL if isinstance(model, Denoiser) else OF_TOKENS
        parts = {name: getattr(model, name) for name in names}
        if model.field and not getattr(model.network, "field", False):
            parts[FIELD] = True  # what the network does not say itself
    parts |= {"schedule": objective.schedule, "loss": loss}
    return parts | {name: getattr(loss, name) for name in _of_loss(entry_of("loss", loss))}


def _of_loss(entry: Entry) -> tuple[str, ...]:
    """The parts of a loss that have entries of their own."""
    name = entry.get("name") if isinstance(entry, dict) else None
    of_library: tuple[str, ...] = ("weighting", "decoder") if name == "Weighted" else ("decoder",)
    return () if is_own(entry) else of_library


def _check_config(config: Config, given: Mapping[str, Any]) -> None:
    """Raise for what is wrong in a config.json, and for parts that have to be given."""
    version = config.get("format")
    hint = "a newer version of vdiff wrote it"
    if version is None:
        hint = "if this is the folder of a run: Run(folder).load()"
    require(version == FORMAT, CONFIG, f"have format {FORMAT}", json_repr(version), hint)
    of_model = _of_model(config)
    of_loss = _of_loss(config.get("loss"))
    field = {FIELD} & config.keys() if "model" not in config else set[str]()
    unlike = {"format", *of_model, *field, "schedule", "loss", *of_loss} ^ config.keys()
    came = f"a difference in {', '.join(map(printable_name, sorted(unlike)))}"
    require(not unlike, CONFIG, "hold the parts of an objective", came)
    require(config.get(FIELD, True) is True, FIELD, "be true", json_repr(config.get(FIELD)))
    usable = {"model", "schedule", "loss"}
    usable |= set() if "model" in given else set(of_model)
    usable |= set() if "loss" in given else set(of_loss)
    for name in given:
        hint = did_you_mean(name, usable) or f"there are {', '.join(sorted(usable))}"
        require(name in usable, name, "be a part of this objective", repr(given[name]), hint)
    timeless = "process" in config and config.get("time") is None
    given = {**given, "time": None} if timeless else given
    for name in (name for name in config if name in usable and name not in given):
        if is_own(config[name]):
            own = printable_name(config[name]["own"])
            hint = f"plain data cannot say {own}: from_pretrained(folder, {name}=…)"
            raise InvalidValue(name, "be given again", None, hint)
        for error in entry_errors(name, config[name]):
            raise error


def _of_model(config: Config) -> tuple[str, ...]:
    """The parts of a model in a config."""
    if "model" in config:
        return ("model",)
    return OF_TOKENS if "process" in config else OF_MODEL


def _check_network(network: Any) -> None:
    """Raise for a network that is a model already, or cannot take the weights."""
    if isinstance(network, Denoiser | TokenDenoiser | Objective):
        hint = "model= takes a Denoiser; its parts are in the folder too"
        raise InvalidType("network", "be the network alone", type(network).__name__, hint)
    empty = isinstance(network, nn.Module) and any(p.is_meta for p in network.parameters())
    hint = 'network.to_empty(device="cpu")'
    require(not empty, "network", "have memory for its weights", "the meta device", hint)


def _build(config: Config, given: Mapping[str, Any], *, outline: bool = False) -> Objective:
    """The objective of a config, with the parts that are given instead."""
    loss, model = given.get("loss"), given.get("model")
    if loss is None:
        loss = make("loss", config["loss"], **_made(config, given, _of_loss(config["loss"])))
    if model is None:
        network = given.get("network")
        if network is None:
            network = make_network(config["network"], loss.decoder, outline=outline)
        options = _made(config, given, _of_model(config)[1:])
        denoiser: Any = TokenDenoiser if "process" in config else Denoiser
        model = denoiser(network, **options, field=FIELD in config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Objective(model, **_made(config, given, ("schedule",)), loss=loss)


def _made(config: Config, given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] if name in given else make(name, config[name]) for name in names}


def _check_rebuilt(objective: Objective, config: Config, parts: Mapping[str, Any]) -> None:
    """Raise unless the config builds the same objective again."""
    own = {name: value for name, value in parts.items() if is_own(config[name])}
    rebuilt = _build(config, own, outline=True)
    rebuilt.schedule.load_state_dict(objective.schedule.state_dict())
    meant, live = parts_of(rebuilt), parts_of(objective)
    pairs = {path: (live.get(path), meant.get(path)) for path in {**live, **meant}}
    unlike = [
        f"{path}: {now}, by its arguments {was}"
        for path, (now, was) in pairs.items()
        if now != was and not (was is None and path.endswith(VALUES))  # an outline has no values
    ]
    hint = "a part was changed after it was made: make a new one"
    what = "have the parts that their arguments make"
    require(not unlike, "objective", what, shortened(unlike), hint)


def _card(objective: Objective, config: Config, report: Report | None) -> str:
    """The model card."""
    network = getattr(objective.model, "network", objective.model)
    facts = _facts(objective, config, report)
    table = [f"| {title} | {text} |" for title, text in facts.items() if text]
    own = [name for name, entry in config.items() if is_own(entry)]
    given = "".join(f", {name}=…" for name in own)
    lines = ["---", "library_name: vdiff", "tags: [diffusion]", "---", ""]
    lines += [f"# {type(network).__name__}, a diffusion model", "", "| | |", "|---|---|", *table]
    lines += ["", "```python", "from vdiff import Objective", ""]
    lines += [f'objective = Objective.from_pretrained("."{given})', "```", ""]
    if own:
        lines += [f"Parts that are not in the files: {', '.join(own)}. They are given.", ""]
    if objective.decoder is not None:
        model = " --model FILE.py:NAME" if own else ""
        about = ", a function that returns the Denoiser with them" if own else ""
        lines += [f"On the command line{about}:", ""]
        lines += [f"    vdiff evaluate .{model} --data test_photos/", ""]
    if report is not None:
        lines += ["```", str(report), "```", ""]
    return "\n".join(lines)


def _facts(objective: Objective, config: Config, report: Report | None) -> dict[str, str]:
    """What a reader asks of a model first, each with its answer, which may be empty."""
    size = sum(p.numel() for p in objective.model.parameters())
    high, low = objective.schedule.logsnr_max, objective.schedule.logsnr_min
    data = ", ".join(objective.trained_on) or "unknown"
    rows = {"network": f"{_words(config.get('network', config.get('model')))}, {size:,} weights"}
    titles = {"process": "process", "parameterization": "predicts"}
    titles |= {"time": "gets the noise level as"}
    titles |= {"call": "call", "output": "output", "variance": "variance of a reverse step"}
    titles |= {FIELD: "takes a λ for each dimension"}
    titles |= {"schedule": "schedule", "loss": "loss", "weighting": "weighting w(λ)"}
    titles |= {"decoder": "decoder of the data"}
    rows |= {title: _words(config.get(name)) for name, title in titles.items()}
    if isinstance(decoder := objective.decoder, Levels):
        rows["data"] = f"whole numbers 0 … {decoder.levels - 1}, which the decoder encodes"
    elif "process" in config:
        rows["data"] = f"tokens 0 … {objective.model.process.vocabulary - 1}"
    else:
        rows["data"] = "floating numbers, as the network sees them"
    rows["ends of the schedule"] = f"λ = {high:.6g} (data) to {low:.6g} (noise)"
    rows["trained on data with the hash"] = data
    rows["bits/token" if "process" in config else "bits/dim"] = (
        "not evaluated" if report is None else str(report.total)
    )
    rows["saved with"] = ", ".join(f"{name} {value}" for name, value in versions().items())
    return rows


def _words(entry: Entry) -> str:
    """An entry for a reader."""
    if is_own(entry):
        return f"`{printable_name(entry['own'])}` (given when it is loaded)"
    return "" if entry is None else f"`{_call(entry)}`"


def _call(value: Entry) -> str:
    if isinstance(value, list) and len(value) > LONG:
        return f"[{value[0]}, …, {value[-1]}]"
    if not isinstance(value, dict):
        return repr(value)
    arguments = (f"{name}={_call(v)}" for name, v in value.items() if name != "name")
    return f"{value['name']}({', '.join(arguments)})"
