"""The experiment on normal images: learn them, and find what is abnormal and where."""

import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any as PyTree
from typing import ClassVar

import ml_collections
import numpy as np

from vae_attn import workdir_scores
from vae_attn.data import sources
from vae_attn.data.dataset import AnomalyData
from vae_attn.errors import UserError
from vae_attn.experiments import faithful, learned, learned_training
from vae_attn.experiments.anomaly import (
    collected,
    comparison,
    evaluation,
    export,
    groups,
    loading,
    own_images,
    report,
    selection,
    snapshots,
    summary,
)
from vae_attn.experiments.anomaly.calibration import Calibration, fused_layers, variant_of
from vae_attn.experiments.anomaly.explainer import Explainer, calibrate
from vae_attn.experiments.anomaly.simple_baselines import MEDIAN_SMOOTH
from vae_attn.experiments.counterpart_cache import CounterpartCache
from vae_attn.experiments.map_functions import IMAGE
from vae_attn.experiments.protocol import Content, Experiment, Trained
from vae_attn.reporting import figures
from vae_attn.reporting.tables import Table
from vae_attn.training import objectives
from vae_attn.training.checkpoints import digest
from vae_attn.workdir_scores import EVALUATION

_LOG = logging.getLogger("vae_attn")


class AnomalyExperiment(Experiment):
    """A VAE of normal images; see `protocol.Experiment`."""

    panels: ClassVar[Mapping[str, Mapping[str, str]]] = figures.LOSSES
    y_label: ClassVar[str] = "nats per image"
    curves_caption: ClassVar[str] = (
        "Losses of the training steps (means between two points; z sampled) and of the validation "
        "images (at z = mean), in nats per image."
    )

    def __init__(self, config: ml_collections.ConfigDict, data: AnomalyData) -> None:
        """An experiment on data that is loaded already."""
        self.config, self.data = config, data
        self._kept: dict[tuple[str, int], CounterpartCache] = {}
        images = config.report.tensorboard_images
        self.draw = snapshots.MapSnapshots(config, data) if images else None

    @classmethod
    def load(cls, config: ml_collections.ConfigDict) -> "AnomalyExperiment":
        """The experiment on the data of a config."""
        return cls(config, sources.load(config))

    members = staticmethod(sources.members)
    report_members = staticmethod(groups.report)
    main_scores = staticmethod(summary.main_scores)

    @staticmethod
    def use(
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        *,
        images: str | None,
        tiles: str | None,
    ) -> Callable[[], None]:
        """Explains the user's image files, or exports the maps."""
        if images is not None and config.data.frames > 1:
            raise UserError(
                f"--images={images}: this run explains stacks of {config.data.frames} frames "
                "(data.frames), which no file holds: load it with vae_attn.load(workdir) and pass "
                "arrays of stacks (vae_attn.data.frame_stacks)."
            )
        paths = own_images.find(images) if images is not None else []
        explainer = loading.load_with(config, workdir)

        def act() -> None:
            if images is None:
                _LOG.info("exported: %s", export.write(config, workdir, explainer))
            else:
                own_images.explain(explainer, paths, workdir, tiles=tiles)

        return act

    def counts(self) -> str:
        """Images to train on, held out, and to test."""
        test = self.data.test
        normal = int((test.labels == 0).sum())
        kinds = f"{len(test)} to test"
        if len(test):
            kinds += f" ({normal} normal, {len(test) - normal} not)"
        return f"{super().counts()}, {len(self.data.validation)} held out, {kinds}"

    def missing(self) -> tuple[str, ...]:
        """What the folders do not let a run score."""
        return self.data.missing

    def choose(self, trained: Trained) -> dict[str, object]:
        """Style, layers and calibration by `evaluate.select`; kept beside the checkpoints."""
        config = trained.config
        if not config.evaluate.select:
            return {}
        head = self._head(trained) if config.learned.steps else None
        origin = {
            "parameters": digest(trained.variables),
            "head": "" if head is None else head.digest,
            "projection_steps": config.attention.projection_steps,
            "styles": config.evaluate.styles,
            "layers": config.evaluate.layers,
            "max_images": config.evaluate.max_images,
            "seed": config.seed,
        }
        origin = json.loads(json.dumps(origin))
        path = trained.workdir / selection.FILE
        found = selection.Selection.load(path)
        if found is None or found.origin != origin:
            explainer = self._calibrated(trained.variables, head)
            options = _options(config) | {"curves_of": (), "mask_size": collected.MODEL}
            options["smooth_frames"] = 0.0
            drawn = selection.drawn_data(self.data, config.seed)
            scores, _ = evaluation.evaluate(explainer, drawn, **options)
            candidates = evaluation.candidates(explainer, **options)
            found = selection.Selection.of(candidates, scores, origin)
            found.save(path)
        name, score = found.variant.name, f"{found.variant.name}/{selection.DRAWN}{selection.SCORE}"
        _LOG.info("chosen by drawn anomalies: %s (AP %.3f)", name, found.scores.get(score, 0.0))
        return found.keys

    def prepare(self, trained: Trained) -> None:
        """Measures the calibration, unless the one that is there still holds."""
        self._explainer(trained)

    def evaluate(self, trained: Trained) -> dict[str, float]:
        """All scores of one seed's model; writes `evaluation/curves.json`."""
        explainer = self._explainer(trained)
        if some := summary.some_note(trained.config, self.data):
            _LOG.info("%s", some)
        scores, curves = evaluation.evaluate(explainer, self.data, **_options(trained.config))
        images = self.data.test.images if len(self.data.test) else self.data.validation
        layers = tuple(trained.config.evaluate.layers)
        held_out = self._held_out()
        scores |= faithful.evaluate(trained.config, explainer, images, held_out, layers=layers)
        if trained.config.evaluate.select:
            scores |= self._drawn_scores(trained, scores)
            _LOG.info("%s", selection.described(scores))
        curves.save(trained.workdir / EVALUATION / "curves.json")  # last, as the scores are written
        return scores

    def _drawn_scores(self, trained: Trained, scores: Mapping[str, float]) -> dict[str, float]:
        """The first seed's scores on drawn anomalies, of the maps that were scored."""
        found = selection.Selection.load(trained.workdir / selection.FILE)
        names = {key.rpartition("/")[0] for key in scores}
        kept = {} if found is None else found.scores
        return {key: value for key, value in kept.items() if key.rpartition("/")[0] in names}

    def score_checkpoint(
        self, config: ml_collections.ConfigDict, variables: PyTree
    ) -> dict[str, float]:
        """The main scores of a checkpoint, with a calibration of its own."""
        # Of the other styles no score is shown; the run's own is scored in any case.
        options = _options(config) | {"styles": ("paper",)}
        head = None
        if variant_of(config.attention).is_learned:  # a head of its own
            head = self._trained_head(variables, self._head_settings(config))
        explainer = self._calibrated(variables, head)
        scores, _ = evaluation.evaluate(explainer, self.data, **options)
        return summary.main_scores(config, scores)

    def tables(self, scores: Mapping[str, float], config: ml_collections.ConfigDict) -> list[Table]:
        """Beside the numbers of others, where there are any; and all scores."""
        return summary.of_run(config, scores, self.data)

    def card_tables(
        self, scores: Mapping[str, float], config: ml_collections.ConfigDict
    ) -> list[Table]:
        """Beside the numbers of others, and which maps are true."""
        compared = comparison.compare(config, {config.data.category: scores})
        return [*compared, *faithful.table(scores)]

    def limits(self, workdir: pathlib.Path) -> list[str]:
        """Of a model of one kind of normal images, and of its thresholds."""
        name, decided = self.data.name, []
        if (kept := Calibration.load(workdir / loading.CALIBRATION)) is not None:
            counted = {"An image": kept.images, "A pixel": kept.pixels}
            decided = [
                f"{what} counts as abnormal above {of.described()}."
                if of.value is not None
                else f"{what} gets no decision: {of.missing}."
                for what, of in counted.items()
            ]
        return [
            f"It has seen normal images of {name} alone, and calls whatever differs abnormal: "
            "another camera, light or framing too.",
            "An image is resized to the model's size: what is smaller than a pixel of it is lost.",
            "contrast says where an image is abnormal, and not which latent says so; the signed "
            "maps of deeplift say why, and are not scored by where.",
            "The maps explain the difference from the model's own normal counterpart, which may be "
            "a poor one.",
            *decided,
            "A threshold's rate of false alarms holds for normal images like the held-out ones.",
            *(f"Not scored: {sentence}." for sentence in self.data.missing),
        ]

    def content(
        self, trained: Trained, scores: Mapping[str, float], workdir: pathlib.Path
    ) -> Content:
        """The figures, the explorer and the curves."""
        return report.content(
            self.config, workdir, self._explainer(trained), self.data, scores, trained.workdir
        )

    def _explainer(self, trained: Trained) -> Explainer:
        """The trained model, with its calibration kept beside its checkpoints."""
        config = self.config
        path = trained.workdir / loading.CALIBRATION
        parameters, variant = digest(trained.variables), variant_of(config.attention)
        head = self._head(trained) if config.learned.steps else None
        if (kept := Calibration.load(path)) is not None:
            found = (kept.parameters, kept.variant, kept.head)
            found += (kept.projection_steps, kept.images.images)
            wanted = (parameters, variant, head.digest if variant.is_learned else "")
            wanted += (config.attention.projection_steps, len(self._held_out()))
            if found == wanted:
                model = objectives.build_model(config)
                return Explainer.of(
                    model,
                    trained.variables,
                    kept,
                    **loading.batches(config),
                    counterpart_cache=self._counterpart_cache(parameters),
                    head=head,
                )
        explainer = self._calibrated(trained.variables, head)
        explainer.calibration.save(path)
        summary.log(explainer.calibration, explainer.model.latents)
        return explainer

    def _head(self, trained: Trained) -> learned.Head:
        """The head of a trained model, kept beside its checkpoints once it is trained."""
        settings = self._head_settings(trained.config)
        origin = {"parameters": digest(trained.variables), "inputs": learned.INPUTS}
        origin = json.loads(json.dumps(origin | settings._asdict()))
        path = trained.workdir / learned.FILE
        kept = learned.Head.load(path)
        if kept is not None and kept[1] == origin:
            return kept[0]
        head = self._trained_head(trained.variables, settings)
        head.save(path, origin)
        workdir_scores.forget(trained.workdir)  # of another head, if there are any
        return head

    def _trained_head(self, variables: PyTree, settings: learned_training.Settings) -> learned.Head:
        model, augment = objectives.build_model(self.config), objectives.augmentation(self.config)
        return learned_training.train(model, variables, self.data.train, settings, augment)

    @staticmethod
    def _head_settings(config: ml_collections.ConfigDict) -> learned_training.Settings:
        return learned_training.Settings(
            **config.learned,
            layers=fused_layers(config),
            projection_steps=config.attention.projection_steps,
            seed=config.seed,
        )

    def _calibrated(self, variables: PyTree, head: learned.Head | None) -> Explainer:
        return calibrate(
            objectives.build_model(self.config),
            variables,
            self.data.train,
            self._held_out(),
            variant=variant_of(self.config.attention),
            projection_steps=self.config.attention.projection_steps,
            **loading.batches(self.config),
            counterpart_cache=self._counterpart_cache(digest(variables)),
            head=head,
            caveat=self.data.caveat,
        )

    def _held_out(self) -> np.ndarray:
        """The images that calibrate."""
        return evaluation.sample_validation(self.data, self.config.evaluate.max_images)

    def _counterpart_cache(self, parameters: str) -> CounterpartCache:
        """The cache of these parameters' counterparts; all others but the first are dropped.

        The first are those of the first seed, which the page shows at the end.
        """
        key = (parameters, self.config.attention.projection_steps)
        if key not in self._kept:
            first = dict(list(self._kept.items())[:1])
            self._kept = first | {key: CounterpartCache()}
        return self._kept[key]


def _options(config: ml_collections.ConfigDict) -> dict:
    """What `evaluation.evaluate` takes of a config."""
    return {
        "styles": tuple(config.evaluate.styles),
        "layers": tuple(config.evaluate.layers),
        "fused": fused_layers(config),
        "curves_of": (*comparison.compared(config), f"{MEDIAN_SMOOTH}/{IMAGE}"),
        "max_images": config.evaluate.max_images,
        "mask_size": config.evaluate.mask_size,
        "seed": config.seed,
        "smooth_frames": config.evaluate.smooth_frames,
    }
