"""The same weights, images and perturbations in PyTorch: Captum's and Quantus' values are ours.

Needs the extra `torch-tests`; skipped without it.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn import attention, attributions, faithfulness

torch = pytest.importorskip("torch")
captum_attr = pytest.importorskip("captum.attr")
captum_metrics = pytest.importorskip("captum.metrics")

BATCH, SIDE, LATENTS, COUNT = 3, 12, 4, 30
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


WEIGHTS = {
    "conv1": 0.4 * normal(0, 3, 3, 1, 5),
    "conv2": 0.2 * normal(1, 3, 3, 5, 6),
    "fc": 0.2 * normal(2, 3 * 3 * 6, 8),
    "mean": 0.3 * normal(3, 8, LATENTS),
}
IMAGES, BASELINES = (jnp.asarray(normal(seed, BATCH, SIDE, SIDE, 1)) for seed in (4, 5))


def features(x):
    x = jax.lax.conv_general_dilated(x, WEIGHTS["conv1"], (1, 1), "SAME", None, None, DIMENSIONS)
    # No ReLU here: where a pool and a nonlinearity meet, Captum 0.9's DeepLIFT does not add up.
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    padding = [(1, 1), (1, 1)]
    return jax.lax.conv_general_dilated(
        x, WEIGHTS["conv2"], (2, 2), padding, None, None, DIMENSIONS
    )


def head(a):
    hidden = jnp.tanh(jax.nn.relu(a).reshape(a.shape[0], -1) @ WEIGHTS["fc"])
    return hidden @ WEIGHTS["mean"]


def encode(x):
    return head(features(x))


class Encoder(torch.nn.Module):
    """The same; its features are flattened as ours, channels last."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 5, 3, padding=1, bias=False)
        self.pool = torch.nn.MaxPool2d(2)
        self.conv2 = torch.nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=False)
        self.relu = torch.nn.ReLU()
        self.fc = torch.nn.Linear(3 * 3 * 6, 8, bias=False)
        self.tanh = torch.nn.Tanh()
        self.mean = torch.nn.Linear(8, LATENTS, bias=False)
        with torch.no_grad():
            for name, weight in WEIGHTS.items():
                axes = (3, 2, 0, 1) if weight.ndim == 4 else (1, 0)
                getattr(self, name).weight.copy_(torch.from_numpy(weight.transpose(axes).copy()))

    def forward(self, x):
        x = self.relu(self.conv2(self.pool(self.conv1(x))))
        return self.mean(self.tanh(self.fc(x.permute(0, 2, 3, 1).flatten(1))))


def to_torch(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def theirs():
    return Encoder().eval()


@pytest.fixture(autouse=True)
def _their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def maps():
    found = jax.jit(lambda x, b: attributions.deeplift(encode, x, b))(IMAGES, BASELINES)
    return found.sum(axis=-1)


def masks():
    return faithfulness.random_squares(
        jax.random.key(0), BATCH, (SIDE, SIDE), count=COUNT, sides=(2, 5)
    )


def test_the_models_are_the_same(theirs):
    with torch.no_grad():
        np.testing.assert_allclose(encode(IMAGES), theirs(to_torch(IMAGES)), rtol=1e-4, atol=1e-5)


def test_deeplift(theirs, maps):
    method = captum_attr.DeepLift(theirs)
    for i in range(LATENTS):
        expected = method.attribute(to_torch(IMAGES), to_torch(BASELINES), target=i)
        expected = expected.detach().numpy()[:, 0]
        np.testing.assert_allclose(maps[:, i], expected, rtol=1e-4, atol=1e-5)


def test_integrated_gradients(theirs):
    method = captum_attr.IntegratedGradients(theirs)
    ours = jax.jit(lambda x, b: attributions.integrated_gradients(encode, x, b, steps=6))
    found = ours(IMAGES, BASELINES)[..., 0]
    for i in range(LATENTS):
        expected = method.attribute(
            to_torch(IMAGES),
            to_torch(BASELINES),
            target=i,
            n_steps=6,
            method="riemann_middle",
        )
        np.testing.assert_allclose(found[:, i], expected.numpy()[:, 0], rtol=1e-4, atol=1e-5)


def test_grad_cam(theirs):
    method = captum_attr.LayerGradCam(theirs, theirs.conv2)
    found = attention.paper_maps(head, features(IMAGES))
    for i in range(LATENTS):
        expected = method.attribute(to_torch(IMAGES), target=i, relu_attributions=True)
        expected = expected.detach().numpy()[:, 0]
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_infidelity(theirs, maps, scaled):
    drawn = masks()
    changes = faithfulness.changes(encode, IMAGES, BASELINES, drawn)
    found = faithfulness.infidelity(faithfulness.sums(maps, drawn), changes, scaled=scaled)
    for b in range(BATCH):
        mask = torch.from_numpy(np.array(drawn[b]))[:, None]
        baseline = to_torch(BASELINES[b : b + 1])

        def perturb(x, mask=mask, baseline=baseline):
            return mask.float(), torch.where(mask, baseline, x)

        for i in range(LATENTS):
            expected = captum_metrics.infidelity(
                theirs,
                perturb,
                to_torch(IMAGES[b : b + 1]),
                torch.from_numpy(np.array(maps[b, i]))[None, None],
                target=i,
                n_perturb_samples=COUNT,
                normalize=scaled,
            )
            np.testing.assert_allclose(found[b, i], expected.item(), rtol=1e-4, atol=1e-7)


def test_max_sensitivity(theirs):
    noise = jnp.asarray(0.05 * normal(6, 5, *IMAGES.shape))
    explain = jax.jit(
        lambda x: attributions.integrated_gradients(encode, x, BASELINES[:1], steps=4)
    )
    found = [
        faithfulness.max_sensitivity(explain, IMAGES[b : b + 1], noise[:, b : b + 1])[0]
        for b in range(BATCH)
    ]
    method = captum_attr.IntegratedGradients(theirs)
    for b in range(BATCH):

        def perturb(x, _radius, b=b):
            return x + to_torch(noise[:, b])

        for i in range(LATENTS):
            expected = captum_metrics.sensitivity_max(
                method.attribute,
                to_torch(IMAGES[b : b + 1]),
                perturb,
                n_perturb_samples=len(noise),
                baselines=to_torch(BASELINES[:1]),
                target=i,
                n_steps=4,
                method="riemann_middle",
            )
            np.testing.assert_allclose(found[b][i], expected.item(), rtol=1e-4)


def test_faithfulness_correlation_of_quantus(theirs, maps):
    quantus = pytest.importorskip("quantus")
    drawn = []

    def replace(arr, indices, **_):
        mask = np.zeros(arr.shape, bool)
        np.put_along_axis(mask, indices, True, axis=1)
        drawn.append(mask.reshape(BATCH, SIDE, SIDE))
        return np.where(mask, np.asarray(BASELINES).reshape(arr.shape), arr)

    i = 1
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=COUNT,
        subset_size=14,
        perturb_func=replace,
        abs=False,
        normalise=False,
        return_aggregate=False,
        disable_warnings=True,
    )
    expected = metric(
        model=theirs,
        x_batch=np.asarray(IMAGES).transpose(0, 3, 1, 2),
        y_batch=np.full(BATCH, i),
        a_batch=np.asarray(maps[:, i : i + 1]),
        softmax=False,
    )
    drawn = jnp.asarray(np.stack(drawn[:COUNT], axis=1))
    changes = faithfulness.changes(encode, IMAGES, BASELINES, drawn)
    found = faithfulness.correlation(faithfulness.sums(maps, drawn), changes)[:, i]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
