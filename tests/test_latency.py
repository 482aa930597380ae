"""`tests/long/latency.py`: everybody answers the same, in turns. Not here: figures (docs/export.md)."""

import json

import numpy as np
import pytest
from rich.console import Console

from sb3_simple_ddpg.benchmark import benchmark
from tests.long import latency
from tests.long.latency import LOADED, ONNX, OURS, SB3, Policy


@pytest.mark.parametrize("normalize", [False, True])
def test_all_four_give_the_same_action_for_the_same_raw_observation(normalize: bool, tmp_path):
    by_name = latency.answers(Policy("", (8,), normalize), tmp_path)
    assert list(by_name) == [SB3, OURS, LOADED, ONNX]
    expected = by_name[SB3]()
    assert expected.shape == (1,)
    for name, answer in by_name.items():
        np.testing.assert_allclose(answer(), expected, rtol=0, atol=4e-5, err_msg=name)  # 1e-5 of the range


def test_each_repeat_begins_with_another_one_and_answers_are_compared_first():
    calls: list[str] = []

    def answer(name: str, value: float):
        def call() -> np.ndarray:
            calls.append(name)
            return np.array([value])

        return call

    settings = benchmark.Settings(repeats=2, steps=1, quick=True)
    found = latency.measure({SB3: answer(SB3, 1.0), ONNX: answer(ONNX, 1.0)}, settings)
    assert calls[-4:] == [SB3, ONNX, ONNX, SB3]
    assert {name: len(values) for name, values in found.items()} == {SB3: 2, ONNX: 2}
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        latency.measure({SB3: answer(SB3, 1.0), ONNX: answer(ONNX, 1.001)}, settings)


def test_it_writes_table_and_json_with_ratios_repeat_by_repeat(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(latency, "POLICIES", latency.POLICIES[:1])
    latency.run_latency(benchmark.Settings(repeats=2, steps=5, quick=True), tmp_path, Console(width=200))
    assert {path.name for path in tmp_path.iterdir()} == {"latency.json", "latency.md"}
    written = json.loads((tmp_path / "latency.json").read_text())
    rows = written["policies"][0]["rows"]
    ratios = [theirs / own for own, theirs in zip(rows[ONNX]["repeats"], rows[SB3]["repeats"], strict=True)]
    assert rows[ONNX]["ratio"][1:] == [min(ratios), max(ratios)]
    assert rows[SB3]["ratio"] == [1.0, 1.0, 1.0]
    assert "| Pendulum, [64, 64] | ONNX file, onnxruntime |" in (tmp_path / "latency.md").read_text()
    assert "times as fast as SB3" in capsys.readouterr().out
