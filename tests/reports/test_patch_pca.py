import torch

from ldae import DDAEModel, LDAEForPreTraining
from ldae.reports.patch_pca import component_colours, patch_pca_images
from tests.models.small_diffusers import draw_input, small_unet
from tests.models.small_models import draw_images, open_gates, small_config


def test_the_three_directions_of_most_variance_become_red_green_and_blue():
    values = torch.rand(2, 5, 24, 24, generator=torch.Generator().manual_seed(0)) - 0.5
    features = values * torch.tensor([0.01, 1.0, 9.0, 3.0, 0.02]).view(1, 5, 1, 1)
    colours = component_colours(features)
    assert colours.shape == (2, 3, 24, 24) and colours.dtype == torch.float32
    assert colours.amin() == 0 and colours.amax() == 1
    for colour, channel in enumerate((2, 3, 1)):
        pair = torch.stack([colours[:, colour].flatten(), features[:, channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99  # and not -0.99: the sign is settled


def test_components_are_those_of_all_images_together():
    features = torch.zeros(2, 4, 3, 3)
    features[0, 1], features[1, 1] = -1, 1  # each image is the same everywhere; only the images differ
    colours = component_colours(features)
    assert (colours[0, 0] == 0).all() and (colours[1, 0] == 1).all()
    assert (colours[:, 1:] == 0.5).all()


def test_features_without_variance_or_with_few_dimensions_are_grey():
    assert (component_colours(torch.full((2, 6, 4, 4), 0.1)) == 0.5).all()
    two = component_colours(torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert (two[:, 2] == 0.5).all() and (two[:, :2] != 0.5).any()


def test_an_ldaes_patches_and_a_unets_places_have_colours():
    model, pixels = open_gates(LDAEForPreTraining(small_config())), draw_images()
    encoder = patch_pca_images(model, pixels)
    assert encoder.shape == (3, 3, 4, 4) and encoder.std() > 0.1
    assert not torch.equal(encoder, patch_pca_images(model, pixels, layer=3))
    assert not torch.equal(encoder, patch_pca_images(model, pixels, timestep=500))
    unet = small_unet()
    ddae = DDAEModel.from_diffusers(unet)
    assert patch_pca_images(ddae, draw_input(unet)).shape == (2, 3, 8, 8)
