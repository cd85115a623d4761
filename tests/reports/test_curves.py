"""The picture of a fine-tuning run shows what was logged, and the end."""

from ldae.reports.curves import finetuning_figure


def test_the_curves_are_those_of_the_log_and_end_in_the_results():
    records = [
        {"images": 10, "event": "train", "loss": 2.0},
        {"images": 15, "event": "accuracy", "raw": 0.2, "ema": 0.1},
        {"images": 20, "event": "train", "loss": 1.0},
        {"images": 20, "event": "trained"},
    ]
    loss, accuracy = finetuning_figure(records, {"raw": 0.5, "ema": 0.6}).axes
    assert loss.lines[0].get_xydata().tolist() == [[10, 2], [20, 1]]
    assert accuracy.lines[0].get_xydata().tolist() == [[15, 0.2], [20, 0.5]]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["raw", "ema"]
    assert accuracy.lines[1].get_ydata().tolist() == [0.1, 0.6]
