"""Settings that are meant to break the reader are refused in one or two plain lines, before they cost anything."""

from pathlib import Path

import pytest
from refused_commands import changed_micro, refused

from analysis.config.yaml_reader import MAX_BYTES, parse_yaml, read_settings
from analysis.cost import estimate, refuse_above_limits
from analysis.errors import MAX_MESSAGE, UserError, shortened
from analysis.study import Study, build
from analysis.study_file import BUNDLED, load_study, overridden, parse_study, study_of


def bomb(levels: int) -> str:
    lines = ["a0: &a0 x"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!int abc", "is not YAML at line 1: 'abc' is no whole number"),
        ("a: 1\nb: 0x_", "is not YAML at line 2: '0x_' is no whole number"),
        ("a: " + "9" * 5000, "'9+\\.\\.\\.' is no whole number"),
        ("a: 0x" + "f" * 5000, "a whole number must be below 2\\^63"),
        ("a: -0x" + "f" * 5000, "a whole number must be below 2\\^63"),
        ("a: !!bool abc", "'abc' is no truth value"),
        ("a: !!map x", "the tag says mapping, but the value is not a mapping"),
        ("a: !!set {b}", "the kind '.*set' has no meaning in settings"),
        ("a: !!python/name:os.system", "the kind '.*os.system' has no meaning in settings"),
        ("? [a]\n: b", "a key must be a text"),
        ('a: "\\0"', "holds a character that cannot be printed"),
        ('a: "\\ud800"', "holds a character that cannot be printed"),
        ("a: &a [*a]", "a value contains itself through an alias"),
        ("a: &a {b: *a}", "a value contains itself through an alias"),
        ("a: " + "[" * 3000 + "]" * 3000, "more than 50 levels within each other"),
        ("a: " + "{a: " * 3000, "more than 50 levels within each other"),
        (bomb(8), "more than 20000 values"),
        ("a: [" + "1," * 25000 + "]", "more than 20000 values"),
        ("a: " + "x" * MAX_BYTES, "is longer than 100000 characters"),
    ],
)
def test_hostile_yaml_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem) as error:
        parse_yaml(text)
    assert len(str(error.value)) < 300


def test_dates_are_texts_and_aliases_are_read():
    assert parse_yaml("a: 2001-13-45\nb: 2001-12-14\nc: &c [1]\nd: *c") == {
        "a": "2001-13-45",
        "b": "2001-12-14",
        "c": [1],
        "d": [1],
    }


def test_a_long_file_is_not_read(tmp_path):
    with (tmp_path / "long.yaml").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ValueError, match="is longer than 100000 bytes"):
        read_settings(tmp_path / "long.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("step_size: 0.1", "step_size: 1e300", "inner.step_size: input should be less than or equal to 1"),
        ("learning_rate: 0.002", "learning_rate: 1e-300", "train.learning_rate: input should be greater than"),
        ("weight: 0.1", "weight: 1e300", "learners.maml-shot.shot.weight: input should be less than"),
        ("width: 4", "width: " + "x" * 50_000, r"network.width: input should be a valid integer.*\(got 'x"),
        ("width: 4", "width: 4, options: {a: .nan}", "network.options: options must be mappings, lists"),
        ("seeds: [0, 1]", "k" * 900 + ": 1", "unknown key 'kkk"),
    ],
)
def test_hostile_values_are_named_in_short(old, new, said):
    with pytest.raises(UserError, match=said) as error:
        parse_study(changed_micro(old, new), source="micro")
    assert len(str(error.value)) <= MAX_MESSAGE + 100


def test_circular_options_in_python_are_refused():
    options: dict[str, object] = {}
    options["self"] = options
    with pytest.raises(UserError, match="options must be mappings, lists, texts and finite numbers"):
        study_of({"name": "a", "learners": {"maml": {}}, "network": {"name": "vit", "options": options}})


def test_every_message_is_short_and_printable():
    text = shortened("the name \x1b[31m\x00 " + "y" * 5000 + "\n1\n2\n3; do this")
    assert len(text) <= MAX_MESSAGE and "\n" not in text and text.isprintable()
    assert text.startswith("the name '\\x1b'") and text.endswith("3; do this")


NETWORK = "name: conv4, width: 4, normalisation: batch"


def with_numbers(old: str, new: str) -> Study:
    return build(parse_study(changed_micro(old, new), source="micro"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  tasks: 2", "  tasks: 1000000000000", "most of it for curvature"),
        ("evaluation_tasks: 2", "evaluation_tasks: 1000000000000", "most of it for evaluation"),
        ("steps: 2", "steps: 1000000000000", "GB of memory"),
        ("[0, 2, 5]", "1000000000000", "most of it for training"),
        ("meta_batch: 2", "meta_batch: 1000000000000", "most of it for training"),
        ("validation_tasks: 1", "validation_tasks: 1000000000000", "most of it for validation"),
        ("width: 4", "width: 1000000000", "GB of memory, most of it for the parameters"),
        ("weight: 0.1", "weight: 0.1, reference_steps: 1000000000000", "most of it for training"),
        ("step_size: 0.1", "step_size: {candidates: [0.1], meta_steps: 1000000000000}", "for the search"),
        (NETWORK, "name: mlp, hidden: [1000000000000000000]", "for the parameters"),
        (NETWORK, "name: vit, options: {depth: 1000000000}", "options.depth holds"),
        (NETWORK, "name: 'torch.nn:LSTM', options: {input_size: 784, hidden_size: 3, num_layers: 9999}", "above 100"),
    ],
)
def test_absurd_numbers_are_refused_with_an_estimate(old, new, said):
    with pytest.raises(UserError, match=said) as error:
        refuse_above_limits(with_numbers(old, new))
    assert "--yes" in str(error.value)


def test_yes_lifts_the_limits(working_folder: Path, capsys, monkeypatch):
    (working_folder / "long.yaml").write_text(changed_micro("  tasks: 2", "  tasks: 1000000000000"))
    assert "add --yes" in refused(capsys, ["study", "long.yaml"])

    def stop(*_: object, **__: object) -> None:
        raise UserError("the limits are lifted")

    monkeypatch.setattr("analysis.pipeline.session", stop)
    assert "the limits are lifted" in refused(capsys, ["study", "long.yaml", "--yes"])


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_studies_are_far_below_the_limits(name):
    config = load_study(name)
    if config.data.source != "sine-line":
        sizes = {key: getattr(config.data, key) for key in ("ways", "shots", "queries")}
        config = overridden(config, {"data": sizes})
    cost = estimate(build(config))
    assert 0 < sum(cost.seconds.values()) < 100 * 3600
    assert sum(cost.num_bytes.values()) < 1e9


def test_the_estimate_counts_what_is_done_more_often_or_costs_more():
    before = estimate(with_numbers("width: 4", "width: 4")).seconds
    other_loss = estimate(with_numbers("evaluation_tasks: 2", "evaluation_tasks: 2\n  losses: [query]")).seconds
    assert other_loss["curvature"] == pytest.approx(2 * before["curvature"])
    first_order = estimate(
        with_numbers("maml: {algorithm: maml}", "maml: {algorithm: maml, first_order: true}")
    ).seconds
    assert first_order["training"] < 0.9 * before["training"]
    more_checkpoints = estimate(with_numbers("[0, 2, 5]", "[0, 1, 2, 3, 4, 5]")).seconds
    for work in ("validation", "evaluation", "curvature"):  # of the untrained network there is one checkpoint as before
        assert 1.1 * before[work] < more_checkpoints[work] < 2 * before[work]
    assert more_checkpoints["training"] == pytest.approx(before["training"])


@pytest.mark.parametrize(("width", "ratio"), [(4, 1.0), (256, 2.0)])
def test_the_tasks_of_a_meta_iteration_cost_their_examples_and_not_further_calls(width, ratio):
    network = {"name": "conv4", "width": width, "normalisation": "batch"}
    one, two = (
        estimate(build(overridden(load_study("micro"), {"network": network, "train": {"meta_batch": number}}))).seconds
        for number in (2, 4)
    )
    assert two["training"] == pytest.approx(ratio * one["training"])
    assert two["validation"] == one["validation"]


def test_the_estimate_grows_with_the_network():
    cost = [estimate(with_numbers("width: 4", f"width: {width}")) for width in (64, 640)]
    assert cost[1].num_bytes["the parameters"] > 50 * cost[0].num_bytes["the parameters"]
    assert cost[1].seconds["training"] > 10 * cost[0].seconds["training"]
