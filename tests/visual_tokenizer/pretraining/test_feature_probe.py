import pytest
import torch
from transformers import BeitConfig, BeitModel

from visual_tokenizer.errors import UserError
from visual_tokenizer.pretraining.feature_probe import (
    LabelledFeatures,
    average_patches,
    default_layers,
    labelled_features,
    probe,
)


class Pictures:
    """Pictures of two colours by class, each a little different, and one without a label."""

    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = ["red" if number % 2 else "blue" for number in range(count)]
        colours = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, -1.0]])
        noise = torch.randn(count, 3, 16, 16, generator=generator) * 0.2
        self.pixels = colours[torch.arange(count) % 2][:, :, None, None] + noise

    def batches(self, size):
        yield {"pixels": self.pixels, "labels": [{"group": label} for label in self.labels]}
        yield {"pixels": self.pixels[:1], "labels": [{"group": ""}]}


def network():
    torch.manual_seed(0)
    config = BeitConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    return BeitModel(config, add_pooling_layer=False).eval()


def test_features_are_the_average_of_a_blocks_patches():
    model, pixels = network(), torch.rand(2, 3, 16, 16)
    states = []
    hooks = [block.register_forward_hook(lambda _, __, out: states.append(out)) for block in model.layers]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    for layer, found in zip((1, 3), average_patches(model, pixels, [1, 3]), strict=True):
        torch.testing.assert_close(found, states[layer - 1][:, 1:].mean(1))


def test_classes_that_differ_are_told_apart_and_shuffled_ones_are_not():
    networks = {"trained": network()}
    train, heldout = (
        labelled_features(networks, Pictures(count, seed), "group", [2, 3], torch.device("cpu"))
        for count, seed in ((60, 0), (40, 1))
    )
    assert len(train.labels) == 60
    assert set(train.views) == {"pixels", "trained_layer_2", "trained_layer_3"}
    values = probe(train, heldout, neighbours=5, seed=0)
    assert values["chance"] == 0.5
    for view in train.views:
        assert values[f"knn_accuracy_{view}"] == values[f"linear_accuracy_{view}"] == 1.0
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    mixed = LabelledFeatures(train.views, [train.labels[place] for place in order])
    assert probe(mixed, heldout, neighbours=5, seed=0)["knn_accuracy_pixels"] < 0.8


def test_a_class_that_no_training_picture_has_counts_as_wrong():
    views = {"pixels": torch.randn(6, 4)}
    values = probe(
        LabelledFeatures(views, ["a", "b"] * 3), LabelledFeatures(views, ["a", "c"] * 3), neighbours=1, seed=0
    )
    assert values["knn_accuracy_pixels"] == 0.5


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"must be a column of labels of the source \(group\), got 'kind'"):
        labelled_features({}, Pictures(4), "kind", [1], torch.device("cpu"))


def test_the_default_blocks():
    assert default_layers(12) == [9, 12]
    assert default_layers(4) == [3, 4]
    assert default_layers(1) == [1]
