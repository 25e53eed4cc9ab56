"""What a run writes for TensorBoard and for scripts."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from metarl_cli.interfaces import Diagnostics
from metarl_cli.runs.tracking import FIRST, Tracker, tag_of


def tracked(folder, *rows, hparams=None, texts=None, diagnostics=()):
    """The events of a run that has logged ``rows``, and the lines of its metrics."""
    tracker = Tracker(folder, hparams or {}, texts or {}, None)
    for step, row in enumerate(rows):
        tracker.log(row, step)
    for shown in diagnostics:
        tracker.diagnostics(shown, 1)
    tracker.close(finished=True)
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return events, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def charts(events) -> dict[str, list[str]]:
    """The charts of the Custom Scalars tab: the last layout counts."""
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    return {category.title: [chart.title for chart in category.chart] for category in layout.category}


def test_what_matters_has_the_first_group_and_its_own_names_in_the_file(tmp_path):
    metrics = dict.fromkeys([*FIRST, "eval/auc", "loss/td", "time/training_seconds"], 1.0)
    events, lines = tracked(tmp_path, metrics)
    tags = sorted(events.Tags()["scalars"])
    assert tags[:5] == sorted(map(tag_of, FIRST))
    assert all(tag.startswith("adaptation/") for tag in tags[:5])
    assert tags[5:] == ["eval/auc", "loss/td", "time/training_seconds"]
    assert lines == [{"step": 0, **metrics}]


def test_only_charts_with_something_to_show(tmp_path):
    events, _ = tracked(tmp_path, {"loss/td": 1.0}, {"loss/td": 1.0, "eval/return_before": 0.0, "eval/return_step_1": 1.0})
    assert charts(events) == {"Adaptation": ["validation: before and after", "validation: each step"], "Training": ["loss"]}
    assert len(events.Tensors("custom_scalars__config__")) == 2, "once for each set of new tags"


def test_hyper_parameters_have_one_type_each(tmp_path):
    hparams = {"algo": "dqn", "experiment": None, "gamma": None, "lr": 0.1, "clip": 1, "hidden": [8, 8]}
    events, _ = tracked(tmp_path, hparams=hparams)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.WhichOneof("kind") for name, value in shown.items()} == {
        "algo": "string_value",
        "lr": "number_value",
        "clip": "number_value",
        "hidden": "string_value",
    }


def test_texts_are_there_from_the_beginning(tmp_path):
    events, _ = tracked(tmp_path, texts={"run/command": "    metarl train"})
    assert events.Tensors("run/command/text_summary")[0].tensor_proto.string_val == [b"    metarl train"]


@pytest.mark.parametrize("values", [[1e30, 1.0], [float("nan"), 1.0], [-float("inf")], [float("nan")], []])
def test_a_histogram_of_any_numbers_ends_no_run(values, tmp_path):
    events, _ = tracked(tmp_path, diagnostics=[Diagnostics({"rates": torch.tensor(values)}, {}, {})])
    assert ("rates" in events.Tags()["histograms"]) == any(abs(value) < float("inf") for value in values)
