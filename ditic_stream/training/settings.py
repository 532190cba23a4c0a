"""What a training run is told: data, sizes, stage, learning rate, loss, and the licence of what comes out.

In: what a user says.  Out: a TrainConfig, a frozen value that a checkpoint holds whole.  Trains nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ditic_stream.errors import ConfigError
from ditic_stream.models.config import LEVELS, PRESETS, ModelConfig
from ditic_stream.models.weights import LICENCE_LENGTH, NOT_STATED
from ditic_stream.training import SEED_MAX
from ditic_stream.training.data import USUAL, Mix
from ditic_stream.training.objective import Terms
from ditic_stream.training.scenes import MEMORY

SWITCHES: dict[str, dict[str, int]] = {
    "variance": {"unguided": 1},
    "condition": {"unconditioned": 1},
    "dit": {"depth": 0},
}
"""Two alignments of DiT-IC (variance-guided flow, latent-conditioned guidance) and the transformer as a whole, and what
switches each off in the network.  The third, self-distillation, is a term of the loss."""
RATE, RATE_FROM_A_SET = 1e-3, 3e-4
"""Learning rates where none is said: from scratch and in the entropy stage, and of all networks of a trained set, which
the former would undo first."""
ALL_LEVELS = (0.0, float(LEVELS - 1))
"""The first and the last rate level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run."""

    data: tuple[str, ...]
    """Folders, tar files, lists, pictures and scenes to train on, see `training.scenes`."""
    memory: float = MEMORY
    """Gigabytes of pictures that are held, on the device; of more, windows are drawn."""
    out: str
    """Folder of checkpoint, log and weights; made if absent.  A checkpoint found there is continued."""
    model: str = "small"
    """Preset of sizes."""
    without: tuple[str, ...] = ()
    """What to leave out, of SWITCHES, for ablations.  Another architecture, so not together with `start`."""
    condition: bool = False
    """Condition tokens of the latent (DiT-IC's third alignment) for a preset that leaves them out, as small does: there
    they pay nothing.  Another architecture as well."""
    changes: dict[str, int] = field(default_factory=dict)
    """Sizes of the preset to change (fields of ModelConfig), to try another architecture."""
    stage: str = "whole"
    """"whole" trains all networks end to end; "entropy" trains what predicts symbols alone, on pictures' latents, and
    leaves the others as `start` has them."""
    start: str = ""
    """Set of weights to go on from (a name or a file) in place of principal components; rounded symbols count from the
    first step on.  It may have a narrower latent, fewer channels at 1/16 or fewer residual blocks: `training.widen`."""
    even_levels: bool = False
    """Space the rate levels of `start` evenly first, see `training.start`; train its entropy stage afterwards."""
    minutes: float = 60.0
    """Wall time to train; the learning rate falls over it (cosine)."""
    steps: int = 0
    """Steps to train in place of `minutes`, when not 0: a run that repeats whatever the machine's speed."""
    batch: int = 8
    """Crops a step, over all replicas."""
    side: int = 256
    """Side of a crop, pixels; a multiple of 256."""
    rate: float | None = None
    """Learning rate; entropy networks take twice, tables three times as much.  None: see `learning_rate`."""
    threads: int = 2
    """Replicas on a CPU."""
    device: str = "cpu"
    precision: str = "auto"
    """Of the networks' activations: "bfloat16", "float32", or "auto", bfloat16 where the hardware multiplies it (where
    it does not, that is eight times slower than float32)."""
    seed: int = 0
    levels: tuple[float, float] = ALL_LEVELS
    """Rate levels that crops are trained at; a narrower range leaves the others as the start has them."""
    terms: Terms = field(default_factory=Terms)
    """What is minimised beside the rate."""
    crops: Mix = USUAL
    """How many crops are changed, and how; those that are held out are always of the usual mix."""
    features: str = ""
    """File of features (`training.observers`), for `terms.perceptual`."""
    licence: str = NOT_STATED
    """Under which the weights may be passed on, in a few words: the file and every archive made with it say so."""
    report: float = 120.0
    """Seconds between checkpoints and reports."""

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ConfigError(f"model {self.model!r} is not one of {sorted(PRESETS)}; choose one")
        if self.side % 256 or self.side < 256:
            raise ConfigError(f"side {self.side} px is not a multiple of 256; 256 is the default")
        if self.steps < 0 or not (self.steps or self.minutes > 0):
            raise ConfigError(f"{self.steps} steps or {self.minutes:g} minutes of training are none; give more than 0")
        if self.stage not in ("whole", "entropy") or (self.stage == "entropy" and not self.start):
            raise ConfigError(f"stage {self.stage!r} from {self.start!r}: whole, or entropy from a set of weights")
        if strange := set(self.changes) - {f.name for f in fields(ModelConfig)}:
            raise ConfigError(f"{sorted(strange)[0]!r} is no size of a model; see models/config.py")
        if "distillation" in self.without:
            raise ConfigError("self-distillation is off unless it is given a weight; it need not be left out")
        if unknown := set(self.without) - set(SWITCHES):
            raise ConfigError(f"without {sorted(unknown)[0]!r} is not one of {', '.join(SWITCHES)}; choose of these")
        if self.start and (self.without or self.condition):
            raise ConfigError("a set to start from has its architecture already; leave parts out or in from scratch")
        if self.condition and "condition" in self.without:
            raise ConfigError("condition tokens are both asked for and left out; say one")
        if not ALL_LEVELS[0] <= self.levels[0] < self.levels[1] <= ALL_LEVELS[1]:
            raise ConfigError(f"levels {self.levels} are no range within 0..{LEVELS - 1}; that is all of them")
        if self.even_levels and not self.start:
            raise ConfigError("levels are spaced evenly from those of a trained set; name one to start from")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise ConfigError(f"precision {self.precision!r} is not one of auto, bfloat16, float32; choose one")
        if (self.terms.perceptual > 0) != bool(self.features):
            raise ConfigError(
                f"perceptual {self.terms.perceptual:g} with features {self.features!r}; name a features file and a "
                "weight above 0, or neither"
            )
        if self.stage == "entropy" and (self.terms.perceptual or self.terms.adversarial):
            raise ConfigError("an entropy stage decodes no pixel that could be judged; perception belongs to `whole`")
        if not self.licence.strip() or not self.licence.isprintable() or len(self.licence) > LICENCE_LENGTH:
            raise ConfigError(
                f"licence {self.licence[:80]!r} is no line of 1 to {LICENCE_LENGTH} characters; a name such as "
                "CC-BY-4.0, or the holder's, will do"
            )
        if not 0 <= self.seed <= SEED_MAX:
            raise ConfigError(f"seed {self.seed} is outside 0..{SEED_MAX}; choose one within")
        if self.batch % self.threads or self.threads < 1:
            raise ConfigError(f"batch {self.batch} is not a multiple of {self.threads} threads; choose one that is")

    @property
    def architecture(self) -> ModelConfig:
        """The sizes and parts of the network."""
        parts = {"unconditioned": 0} if self.condition else {}
        parts |= {name: value for part in self.without for name, value in SWITCHES[part].items()}
        return replace(PRESETS[self.model], **(self.changes | parts))

    @property
    def learning_rate(self) -> float:
        """The rate that counts, where none was said too."""
        gentle = self.start and self.stage == "whole"
        return self.rate if self.rate is not None else RATE_FROM_A_SET if gentle else RATE


def write_settings(config: TrainConfig, path: Path) -> None:
    """All settings of a run as JSON, with which `read_settings` gives them back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(config), indent=1) + "\n")


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a JSON object, of those TrainConfig has; ConfigError for any other, or of another type."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); take a run's config.json") from error
    settings = _checked(found, asdict(TrainConfig(data=("",), out="")), str(path))
    for name, kind in (("terms", Terms), ("crops", Mix)):
        if name in settings:
            settings[name] = kind(**settings[name])
    return settings


def _checked(found: Any, usual: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ConfigError(f"{where} is no JSON object; give settings by name")
    checked: dict[str, Any] = {}
    for name, value in found.items():
        if name not in usual:
            raise ConfigError(f"{where}: {name!r} is no setting; there are {', '.join(usual)}")
        like = usual[name]
        if isinstance(like, dict) and like:
            checked[name] = _checked(value, like, f"{where}: {name}")
        elif isinstance(like, tuple):
            of = type(like[0]) if like else str
            fits = isinstance(value, list) and all(_is(one, of) for one in value)
            if not fits or (of is float and len(value) != len(like)):
                raise ConfigError(f"{where}: {name} {value!r} is no list like {list(like)!r}; give one")
            checked[name] = tuple(value)
        elif isinstance(like, dict):
            if not isinstance(value, dict) or not all(_is(one, int) for one in value.values()):
                raise ConfigError(f"{where}: {name} {value!r} is no object of whole numbers; give one")
            checked[name] = value
        elif like is None:  # a learning rate
            if value is not None and not _is(value, float):
                raise ConfigError(f"{where}: {name} {value!r} is neither a number nor null; give one")
            checked[name] = value
        elif not _is(value, type(like)):
            raise ConfigError(f"{where}: {name} {value!r} is not of the kind of {like!r}; give one that is")
        else:
            checked[name] = value
    return checked


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind | int if kind is float else kind) and (kind is bool or not isinstance(value, bool))
