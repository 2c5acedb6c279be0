"""From a file and overrides to one configuration, or one clear sentence."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.config import Config, load, option_tree, resolve
from hpcsplit.errors import ConfigError, UsageError
from tests.config.conftest import Toml


def test_an_empty_file_has_a_value_for_every_key(toml: Toml) -> None:
    config = load(toml(""))
    assert (config.data.name, config.model.name, config.method.name) == ("digits", "resnet20", "penalty")
    assert (config.schedule.ratio, config.schedule.epochs, config.split.cuts) == ("1:4", 10, "time")
    assert config.method.options["psi"] == "mean"
    assert config == resolve({}, stem="experiment")


def test_the_file_gives_values_and_the_stem_of_its_name(toml: Toml) -> None:
    config = load(toml('[data]\nname = "mnist"\n[split]\ncuts = [2, 4]\n[method]\nname = "al"\neta_kappa = 1\n'))
    assert config.stem == "experiment"
    assert config.data.name == "mnist"
    assert config.split.cuts == (2, 4)
    assert config.method.options["eta_kappa"] == 1.0


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"optm": {}}, r"unknown section \[optm\]; did you mean optim\?"),
        ({"optim": {"momentun": 0.9}}, r"unknown key optim\.momentun; did you mean optim\.momentum\?"),
        ({"run": {"lr": 0.1}}, r"unknown key run\.lr; did you mean optim\.lr\?"),
        ({"method": {"betta": 1.0}}, r"unknown key method\.betta; did you mean method\.beta\?"),
        ({"method": {"name": "backprop", "psi": "sum"}}, r"it belongs to auxnet, chunked, penalty and al$"),
        ({"method": {"name": "penlty"}}, r"method\.name = 'penlty' is not one of .*did you mean penalty\?"),
        ({"data": {"zzzz": 1}}, r"unknown key data\.zzzz; \[data\] has name, root"),
        ({"lr": 0.1}, r"lr = 0\.1 stands outside of a section"),
        ({"method": "al"}, r"stands outside of a section"),
        ({"method": {"options": {}}}, r"unknown key method\.options"),
        ({"stem": {}}, r"unknown section \[stem\]"),
        ({"origins": {}}, r"unknown section \[origins\]"),
    ],
)
def test_an_unknown_name_is_an_error_that_suggests_the_nearest(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve(tree)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[data", "is not valid TOML"),
        (b"\xff\xfe", "is not a text file in UTF-8"),
        (b"[run]\nseed = " + b"9" * 5000, "is not valid TOML"),
        (b"x = " + b"[" * 5000, "is not valid TOML"),
        (b"[run]\nseed = 1\nseed = 2", "is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load(path)


@pytest.mark.parametrize("name", ["absent.toml", ""])
def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"schedule": {"ratio": "0:0"}}, r"schedule\.ratio"),
        ({"schedule": {"ratio": "1-4"}}, r"schedule\.ratio"),
        ({"schedule": {"ratio": "1:4:2"}}, r"schedule\.ratio"),
        ({"schedule": {"ratio": "auto"}}, r"set data\.validation"),
        (
            {"schedule": {"ratio": "auto"}, "data": {"validation": 10}, "run": {"evaluate_every": 2}},
            r"run\.evaluate_every = 2; set it to 1",
        ),
        ({"schedule": {"ratio": "-1:4"}}, r"schedule\.ratio"),
        ({"schedule": {"epochs": 10, "warmup": 3}}, r"warmup = 3 is more than the 2 serial epochs"),
        ({"schedule": {"epochs": 3, "warmup": 4, "ratio": "0:1"}}, r"warmup = 4 is more than schedule\.epochs = 3"),
        ({"schedule": {"microbatches": 200}}, r"schedule\.microbatches = 200 is more than data\.batch_size = 128"),
        (
            {"method": {"name": "delayed", "microbatches": 129}},
            r"method\.microbatches = 129 is more than data\.batch_size = 128",
        ),
        ({"data": {"batch_size": -1}}, r"data\.batch_size = -1 is below its smallest value 0"),
        ({"method": {"name": "backprop", "frozen": True}}, r"method\.frozen"),
        ({"method": {"downsample": 3}}, r"method\.downsample"),
        ({"split": {"cuts": [4, 2]}}, r"increasing block numbers"),
        ({"split": {"cuts": [2, 2]}}, r"increasing block numbers"),
        ({"split": {"cuts": [0, 2]}}, r"increasing block numbers"),
        ({"split": {"cuts": "balance"}}, r"split\.cuts"),
        ({"split": {"cuts": [2]}, "run": {"stages": 3}}, r"makes 2 stages, run\.stages says 3"),
        ({"model": {"name": "resnet21"}}, r"6n\+2 layers; the nearest are resnet20 and resnet26"),
        ({"model": {"name": "resnet2"}}, r"resnet8 and resnet14"),
        ({"model": {"name": "wrn-41-10"}}, r"6n\+4"),
        ({"model": {"name": "wrn-40-0"}}, r"W >= 1"),
        ({"model": {"name": "vgg"}}, r'model\.name = "vgg" is not .*tssm-resnet'),
        ({"model": {"name": "tssm-resnet24"}}, r"model\.name"),
        ({"schedule": {"epochs": 0, "warmup": 0}}, r"schedule\.epochs = 0 is below its smallest value 1"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_starts(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"schedule": {"epochs": 10, "warmup": 2}},
        {"schedule": {"epochs": 3, "warmup": 3}},
        {"schedule": {"ratio": "1:0", "warmup": 10}},
        {"split": {"cuts": [2]}, "run": {"stages": 2}},
        {"split": {"cuts": []}},
        {"model": {"name": "wrn-40-10"}},
        {"model": {"name": "tssm-resnet"}},
        {"model": {"name": "my.nets:small"}},
        {"data": {"batch_size": 0}},
        {"data": {"batch_size": 0}, "schedule": {"microbatches": 500}},
        {"data": {"batch_size": 4}, "schedule": {"microbatches": 4}},
        {"method": {"name": "backprop"}, "schedule": {"epochs": 10, "warmup": 5}},
        {"optim": {"name": "adadelta"}},
    ],
)
def test_what_can_be_run_is_not_refused(tree: dict[str, Any]) -> None:
    assert isinstance(resolve(tree), Config)


# ------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.lr", "0.25", 0.25),
        ("optim.lr", "1", 1.0),
        ("run.channels_last", "false", False),
        ("split.cuts", "[2, 5]", (2, 5)),
        ("split.cuts", '"flops"', "flops"),
        ("split.cuts", "flops", "flops"),
        ("schedule.ratio", "1:4", "1:4"),
        ("store.path", "/scratch/$USER/aux", "/scratch/$USER/aux"),
        ("store.path", "", ""),
        ("data.root", "a\nb = 1", "a\nb = 1"),
        ("run.device", "'cpu'", "cpu"),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_text(name: str, text: str, value: object) -> None:
    section, key = name.split(".")
    assert getattr(getattr(resolve({}, [(name, text)]), section), key) == value


def test_an_override_beats_the_file_and_the_last_one_beats_the_others() -> None:
    config = resolve({"optim": {"lr": 1.0}}, [("optim.lr", "2"), ("optim.lr", "3")])
    assert config.optim.lr == 3.0


def test_an_override_of_the_method_brings_its_own_keys() -> None:
    config = resolve({}, [("method.eta_kappa", "0.5"), ("method.name", "al")])
    assert config.method.options["eta_kappa"] == 0.5


@pytest.mark.parametrize("name", ["optim", "lr", ""])
def test_an_override_without_a_section_is_misuse(name: str) -> None:
    with pytest.raises(UsageError, match=r"--section\.key VALUE"):
        resolve({}, [(name, "1")])


@pytest.mark.parametrize("name", ["optim.lrr", "optimm.lr", ".lr", "optim.", "optim.lr.x"])
def test_an_override_of_an_unknown_key_is_a_bad_configuration(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        resolve({}, [(name, "1")])


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000, "1\nx = 2", "\udcff"])
def test_a_strange_override_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError):
        resolve({}, [("run.device", text)])


def test_an_override_that_is_no_text_in_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"store\.path"):
        resolve({}, [("store.path", "/tmp/\udcff")])


# ------------------------------------------------------------------------------------------------ resolved text


FULL = {
    "method": {"name": "al", "beta": 1e-7, "psi": "sum"},
    "split": {"cuts": [3, 6]},
    "store": {"path": '/scratch/"odd" \\ \n\u2028 ψ'},
    "optim": {"lr_milestones": [], "weight_decay": 0.0},
    "schedule": {"ratio": "2:3"},
}


@pytest.mark.parametrize("tree", [{}, FULL, {"method": {"name": "backprop"}}])
@pytest.mark.parametrize("origins", [True, False])
def test_the_resolved_text_gives_the_same_configuration_again(tree: dict[str, Any], origins: bool) -> None:
    config = resolve(tree)
    assert resolve(tomllib.loads(config.to_toml(origins))) == config


def test_every_line_says_where_its_value_comes_from(toml: Toml) -> None:
    path = toml("[optim]\nlr = 0.5\nmomentum = 0.5\n")
    config = load(path, [("optim.momentum", "0.8")])
    comments = dict(line.split(" # ") for line in config.to_toml().splitlines() if " # " in line)
    comments = {key.strip(): origin for key, origin in comments.items()}
    assert comments["lr = 0.5"] == str(path)
    assert comments["momentum = 0.8"] == "command line"
    assert comments["weight_decay = 0.0001"] == "default"


# ------------------------------------------------------------------------------------------------ fingerprint


def changed(*overrides: tuple[str, str]) -> set[str]:
    """The parts of the fingerprint that these overrides change."""
    before, after = resolve({}).fingerprint(), resolve({}, overrides).fingerprint()
    return {part for part in before if before[part] != after[part]}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        (("data.batch_size", "64"), "data"),
        (("data.limit_train", "100"), "data"),
        (("model.name", "resnet8"), "model"),
        (("method.beta", "3"), "method"),
        (("method.frozen", "true"), "method"),
        (("method.name", "al"), "method"),
        (("optim.lr", "0.3"), "optim"),
        (("schedule.ratio", "1:1"), "schedule"),
        (("run.seed", "5"), "seed"),
    ],
)
def test_what_decides_the_training_is_in_the_fingerprint(override: tuple[str, str], part: str) -> None:
    assert changed(override) == {part}


@pytest.mark.parametrize(
    "override",
    [
        ("data.root", "/data"),
        ("data.download", "true"),
        ("data.eval_train", "5"),
        ("store.path", "/scratch"),
        ("store.kind", "memory"),
        ("checkpoint.keep", "9"),
        ("checkpoint.aux", "copy"),
        ("run.threads", "3"),
        ("run.time_limit", "10"),
        ("run.runner", "lockstep"),
    ],
)
def test_where_and_how_long_it_runs_is_not(override: tuple[str, str]) -> None:
    assert changed(override) == set()


def test_the_origin_of_a_value_is_no_part_of_a_configuration() -> None:
    assert resolve({"optim": {"lr": 0.1}}) == resolve({}, [("optim.lr", "0.1")]) == resolve({})


def test_another_method_on_the_command_line_leaves_out_what_only_the_files_method_has() -> None:
    tree = {"method": {"name": "al", "beta": 7.0, "eta_kappa": 0.5, "frozen": False}}
    assert resolve(tree, [("method.name", "penalty")]).method.options["beta"] == 7.0
    assert "eta_kappa" not in resolve(tree, [("method.name", "penalty")]).method.options
    assert resolve(tree, [("method.name", "backprop")]).method.options == {}
    with pytest.raises(ConfigError, match="eta_kappa"):
        resolve(tree, [("method.name", "penalty"), ("method.eta_kappa", "0.1")])
    with pytest.raises(ConfigError, match="betta"):
        resolve({"method": {"name": "al", "betta": 7.0}}, [("method.name", "penalty")])
    with pytest.raises(ConfigError, match="unknown key method"):
        resolve({"method": {"name": "penalty", "eta_kappa": 0.5}})


# ------------------------------------------------------------------------------------------------ as people write


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.lr", ".1", 0.1),
        ("optim.lr", "1.", 1.0),
        ("optim.lr", "+.5e0", 0.5),
        ("schedule.epochs", "1e3", 1000),
        ("schedule.epochs", "2.", 2),
        ("schedule.epochs", "1_000", 1000),
        ("schedule.epochs", "007", 7),
        ("run.channels_last", "False", False),
        ("data.augment", "TRUE", True),
        ("split.cuts", "[2e0, 5]", (2, 5)),
        ("data.root", "2024", "2024"),
        ("data.root", "true", "true"),
    ],
)
def test_numbers_and_truth_as_people_write_them(name: str, text: str, value: object) -> None:
    section, key = name.split(".")
    found = getattr(getattr(resolve({}, [(name, text)]), section), key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("optim.lr", "inf", r"optim\.lr = inf is not a finite number; it must be one, > 0"),
        ("optim.lr", "NaN", r"optim\.lr = nan is not a finite number"),
        ("schedule.epochs", "inf", r"schedule\.epochs = inf .* a whole number, >= 1, <= 1e\+06"),
        ("schedule.epochs", "1.5", r"schedule\.epochs = 1\.5 .* a whole number"),
        ("optim.lr", "0,1", r"the decimal sign is a point: 0\.1"),
        ("data.augment", "yes", r"data\.augment = 'yes' .* true or false"),
    ],
)
def test_what_is_no_such_number_is_refused_with_the_limit(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve({}, [(name, text)])


def test_a_file_may_have_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf[optim]\r\nlr = 0.5\r\n[schedule]\r\nepochs = 1e1\r\n")
    config = load(path)
    assert (config.optim.lr, config.schedule.epochs) == (0.5, 10)


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        (".1", "write 0.1 for .1"),
        ("1.", "write 1.0 for 1."),
        ("1.e3", "write 1000.0 for 1.e3"),
        ("007", "write 7 for 007"),
        ("True", "write true for True"),
        ("FALSE", "write false for FALSE"),
        ("0,1", "write 0.1 for 0,1"),
        ("~/data", 'a text stands in quotes: "~/data"'),
        ("cosine", 'a text stands in quotes: "cosine"'),
    ],
)
def test_what_toml_refuses_is_said_with_its_line_and_what_to_write(tmp_path: Path, written: str, advice: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"# my run\n[optim]\nlr = {written}  # as in the paper\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "(at line 3, " in str(caught.value)
    assert str(caught.value).endswith(f"; {advice}")


def test_a_file_name_of_strange_bytes_leaves_the_resolved_text_readable(tmp_path: Path) -> None:
    path = tmp_path / "a\udcff\nb = 1.toml"
    path.write_text("[run]\nseed = 3\n")
    again = tmp_path / "again.toml"
    again.write_text(load(path).to_toml(), encoding="utf-8")
    assert load(again).run.seed == 3


def test_keys_that_earlier_versions_did_not_have_are_no_part_of_it_at_their_defaults() -> None:
    config = resolve({})
    options, tree, prints = option_tree("penalty"), config.as_dict(), config.fingerprint()
    for name in ("model", "optim"):
        earlier = {key: value for key, value in tree[name].items() if not options[name][key].later}
        assert earlier.keys() < tree[name].keys()
        assert prints[name] == hashlib.sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()[:16]
