"""Figures of images: a mosaic keeps every pixel in its place, and what is no image is refused."""

import numpy as np
import pytest
import torch

from dagdiff.checks import Refusal
from dagdiff.report.images import image_chains, image_panels, mosaic, sample_panels


def test_a_mosaic_keeps_every_pixel() -> None:
    images = np.linspace(-1.0, 1.0, 5 * 3 * 4).reshape(5, 1, 3, 4)
    laid = mosaic(images, across=2)
    assert laid.shape == (3 * 4 - 1, 2 * 5 - 1, 1)
    for place, image in enumerate(images):
        row, column = divmod(place, 2)
        cut = laid[4 * row : 4 * row + 3, 5 * column : 5 * column + 4, 0]
        np.testing.assert_allclose(cut, (image[0] + 1) / 2)
    assert (laid[8:, 5:] == 1.0).all(), "places without an image are white"


def test_values_beyond_the_range_are_clipped() -> None:
    laid = mosaic(np.full((1, 3, 2, 2), 5.0), across=1)
    assert laid.shape == (2, 2, 3) and laid.max() == 1.0


def test_panels_and_chains_are_drawn(generator: torch.Generator) -> None:
    images = torch.randn(40, 3, 8, 8, generator=generator).numpy()
    figure = image_panels({"a": images, "b": images[:, :1]})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert figure.axes[0].images[0].get_array().shape[:2] == (4 * 9 - 1, 8 * 9 - 1)
    chains = images.reshape(8, 5, 3, 8, 8)
    assert image_chains({"student": chains}).axes[0].images[0].get_array().shape[:2] == (4 * 9 - 1, 5 * 9 - 1)


@pytest.mark.parametrize(
    ("count", "down", "across"), [(3, 1, 3), (8, 1, 8), (20, 4, 5), (32, 4, 8), (7, 1, 7), (11, 2, 6)]
)
def test_few_images_leave_no_blank_strip(count: int, down: int, across: int) -> None:
    (axes,) = image_panels({"x": np.zeros((count, 1, 8, 8))}).axes
    assert axes.images[0].get_array().shape[:2] == (down * 9 - 1, across * 9 - 1)


def test_samples_are_drawn_as_what_they_are(generator: torch.Generator) -> None:
    assert sample_panels({"x": torch.randn(40, 1, 8, 8, generator=generator).numpy()}).axes[0].images
    assert not sample_panels({"x": torch.randn(40, 2, generator=generator).numpy()}).axes[0].images


@pytest.mark.parametrize(
    ("channels", "title", "colours"),
    [(1, "x", False), (2, "x, channel 1 of 2", False), (3, "x", True), (4, "x, channels 1-3 of 4", True)],
)
def test_states_of_any_number_of_channels_are_drawn(channels: int, title: str, colours: bool) -> None:
    states = np.linspace(-1.0, 1.0, 8 * channels * 64).reshape(8, channels, 8, 8)
    for figure in (image_panels({"x": states}), image_chains({"x": states[:, None]})):
        (axes,) = figure.axes
        picture = axes.images[0].get_array()
        assert axes.get_title() == title and (picture.ndim == 3) == colours
        np.testing.assert_allclose(picture[0, 0], (states[0, : 3 if colours else 1, 0, 0].squeeze() + 1) / 2)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(Refusal, match=r"panel 'x' must be \(n, C, H, W\) images; got shape \(4, 8, 8\). Pass a batch"):
        image_panels({"x": np.zeros((4, 8, 8))})
