import numpy as np
import pytest
import torch

from ldae.evaluation.metrics import Accuracy, accuracy, mean_and_stderr


def test_accuracy_is_a_metric_of_evaluate_that_takes_batches():
    metric = Accuracy(keep_in_memory=True)
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add(prediction=2, reference=2)
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_accuracy_of_tensors_and_again():
    predictions, references = torch.tensor([3, 1, 2, 2]), torch.tensor([3, 1, 1, 2])
    assert accuracy(predictions, references) == 0.75
    assert accuracy(references, references) == 1.0  # nothing is left over from the first


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_accuracy_refuses_what_does_not_fit(shapes):
    with pytest.raises(ValueError, match="one shape"):
        accuracy(*(torch.zeros(shape, dtype=torch.long) for shape in shapes))


def test_mean_and_stderr():
    values = [0.1, 0.4, 0.7, 0.2]
    mean, stderr = mean_and_stderr(values)
    assert mean == pytest.approx(np.mean(values))
    assert stderr == pytest.approx(np.std(values, ddof=1) / 2)
    assert mean_and_stderr([0.3]) == (0.3, None)
    with pytest.raises(ValueError, match="no values"):
        mean_and_stderr([])
