"""The sections of a configuration file, except [method], whose keys are declared in the method's own file."""

from __future__ import annotations

from dataclasses import dataclass

from hpcsplit.config import optimizers
from hpcsplit.config.optimizers import FACTORY, OPTIMIZERS
from hpcsplit.config.option import option
from hpcsplit.data.catalog import OPENERS, SPECS, known_name
from hpcsplit.nets.catalog import NETWORKS, usual
from hpcsplit.schedule.learning_rate import KINDS
from hpcsplit.schedule.timetable import ORDERS
from hpcsplit.tasks.catalog import LOSSES, TASKS

_WITH_MOMENTUM = ", ".join(name for name, known in OPTIMIZERS.items() if known.momentum)
_CROSS_ENTROPY = {  # what only it has
    "model.task != 'classification' and model.task != 'language'": "model.class_weights and optim.label_smoothing are "
    'for classification and language; model.task = "{model.task}". Leave them out',
    "model.loss != '' and model.loss != 'cross_entropy'": "model.class_weights and optim.label_smoothing belong to the "
    'cross-entropy; model.loss = "{model.loss}". Leave them out',
}
_MIXED = {
    "model.task != 'classification'": "optim.mixup and optim.cutmix mix classes, and model.task is "
    '"{model.task}"; leave them out',
    "facts.parallel and not facts.augments and schedule.ratio == '0:1' and schedule.warmup == 0": "optim.mixup and "
    "optim.cutmix act in exact epochs, since {facts.name} keeps variables of every sample, and there is none; set "
    "schedule.warmup or schedule.ratio, or leave them out",
}
_WITH_BETAS = ", ".join(name for name, known in OPTIMIZERS.items() if known.betas)


@dataclass(frozen=True)
class DataSection:
    """Which samples, and how they are dealt into mini-batches."""

    name: str = option("digits", " | ".join((*SPECS, *OPENERS)), spelling=known_name, code=True)
    root: str = option("", "folder or file with the data; empty: ./data, or Debian's package")
    size: int = option(
        0,
        "height and width that images of files get (shorter side resized, middle cut out); 0: they are all of one size",
        unit="pixels",
        low=0,
        high=10_000,
        later=True,
    )
    classes: int = option(0, "of the labels, or tokens; 0: as many as are found", low=0, high=10_000_000, later=True)
    context: int = option(
        128, "bytes in a row that make a sample of a text", unit="tokens", low=1, high=1_000_000, later=True
    )
    normalise: str = option(
        "images",
        "by mean and standard deviation of the training samples: images of bytes, numbers (all), or nothing",
        choices=("images", "all", "none"),
        later=True,
    )
    skip_broken: bool = option(False, "leave out files that are no images, and say how many", later=True)
    workers: int = option(
        -1,
        "processes of a rank that read samples ahead which are not in memory; 0: none; -1: of its cores all but one",
        low=-1,
        high=1024,
        later=True,
    )
    download: bool = option(False, "allow torchvision to download what is absent")
    limit_train: int = option(0, "use only the first so many training samples; 0 uses all", unit="samples", low=0)
    limit_test: int = option(0, "use only the first so many test samples; 0 uses all", unit="samples", low=0)
    batch_size: int = option(128, "mini-batch size; 0: all training samples (full batch)", unit="samples", low=0)
    last_batch: str = option(
        "keep",
        "an epoch's last mini-batch, where it is smaller: trained too (joined where the network cannot take it), "
        "joined to the one before, or left out (other samples in each epoch; only where no variables are kept)",
        choices=("keep", "join", "drop"),
        later=True,
    )
    augment: bool = option(
        True, "random crop with padding 4 (2 with pool) and flips, where data set and method allow it"
    )
    pool: bool = option(False, "average 2 x 2 pixels first (28 x 28 becomes 14 x 14)")
    copies: int = option(
        1,
        "of each training sample: itself and fixed crops and flips of it, each with variables of its own",
        low=1,
        high=10_000,
    )
    validation: int = option(
        0,
        "training samples, the last ones, that are held out and evaluated beside the test set",
        unit="samples",
        low=0,
        later=True,
    )
    eval_train: int = option(
        2000, "training samples for the loss and train_accuracy of each epoch; 0 uses all", unit="samples", low=0
    )


@dataclass(frozen=True)
class ModelSection:
    """The whole network, a sequence of named blocks."""

    name: str = option("resnet20", " | ".join(network.words for network in NETWORKS), code=True)
    task: str = option(
        "classification",
        "what it learns: the class, numbers, the next token at every place, or to generate the image",
        choices=tuple(TASKS),
    )
    loss: str = option(
        "",
        "in place of the task's own: "
        + " | ".join(LOSSES)
        + ", the mean over a sample's values of torch's function of "
        "that name (bce: with logits), or package.module:factory, a function of no arguments whose answer "
        "loss(outputs, targets) gives the loss of each sample, (B,)",
        code=True,
        later=True,
    )
    class_weights: tuple[float, ...] = option(
        (),
        "one for each class: its samples' losses are so many times larger; the mean is over samples",
        low=0.0,
        refused_if=_CROSS_ENTROPY | {"max(model.class_weights) == 0": "model.class_weights are all 0; raise some"},
        later=True,
    )
    block: str = option(
        "post", "residual blocks with activation after (He 2016a) or before (He 2016b)", choices=("post", "pre")
    )
    depth: int = option(9, "hidden layers of the mlp", unit="layers", low=1, high=10_000)
    width: int = option(512, "neurons in each hidden layer of the mlp", unit="neurons", low=1, high=1_000_000)
    weights: str = option(
        "",
        "file of weights to begin with, .safetensors or .pt of a state dict, with the names of torchvision, timm or "
        "this program; a last layer for other classes stays random",
        later=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", usual(self.name))


@dataclass(frozen=True)
class SplitSection:
    """Where the network is cut into stages."""

    cuts: tuple[int, ...] | str = option(
        "time", 'first block of each stage but the first, or a balance: "time" (measured) | "flops" | "params"'
    )

    @property
    def stages(self) -> int:
        """The number of stages that explicit cuts make; 0 when a balance leaves it open."""
        return 0 if isinstance(self.cuts, str) else len(self.cuts) + 1


@dataclass(frozen=True)
class ScheduleSection:
    """Which epochs are exact back-propagation (serial) and which train all stages at once (parallel)."""

    epochs: int = option(10, "all epochs, serial and parallel", unit="epochs", low=1, high=1_000_000)
    ratio: str = option(
        "1:4", 'serial:parallel; "0:1" has no serial epoch but the warm-up; "auto" decides while it trains'
    )
    order: str = option("alternate", "how the two kinds follow each other", choices=("alternate", "parallel-first"))
    warmup: int = option(
        1, "serial epochs at the start; they count as serial epochs of the total", unit="epochs", low=0
    )
    microbatches: int = option(
        1, "pieces of a mini-batch in flight in an exact epoch; 1 is exact to the bit", unit="micro-batches", low=1
    )
    pipeline: str = option("1f1b", "order of the micro-batches in an exact epoch", choices=ORDERS)
    recompute: bool = option(False, "keep the inputs of micro-batches only, and pass them forward once more")
    deferred: bool = option(
        True, "gradients go on before those of the weights are computed, in exact and in delayed epochs: the same bits"
    )
    waiting: int = option(
        0,
        "those of so many micro-batches wait at most when a stage goes on; 0: of one more than stages before it",
        unit="micro-batches",
        low=0,
    )
    patience: int = option(
        0,
        "end the run after so many epochs that are not better than the best one before, by the accuracy (or the loss) "
        "of data.validation; 0: never",
        unit="epochs",
        low=0,
        later=True,
    )
    min_delta: float = option(
        0.0,
        "schedule.patience: what is not better by more than that (a fraction, or nats) does not count",
        low=0.0,
        later=True,
    )
    lr_phases: str = option(
        "run",
        "optim.lr_schedule goes over the whole run, or begins again with the exact epochs at its end, or at each "
        "switch between exact and parallel epochs",
        choices=("run", "restart", "each"),
        later=True,
    )


@dataclass(frozen=True)
class OptimSection:
    """The weight step of every stage."""

    name: str = option(
        "sgd",
        " | ".join((*OPTIMIZERS, FACTORY)) + ", which is called with (params, lr=..., weight_decay=...) and returns a "
        "torch.optim.Optimizer",
        code=True,
        spelling=optimizers.known_name,
    )
    lr: float = option(0.1, "initial learning rate", above=0.0)
    momentum: float = option(0.9, f"momentum of {_WITH_MOMENTUM}", low=0.0, high=1.0)
    beta1: float = option(0.9, f"decay of the mean gradient of {_WITH_BETAS}", low=0.0, high=0.99999, later=True)
    beta2: float = option(0.999, "decay of its square there", low=0.0, high=0.9999999, later=True)
    nesterov: bool = option(
        False,
        "the momentum of sgd looks ahead (Nesterov)",
        refused_if={
            "optim.name != 'sgd' or optim.momentum == 0": "optim.nesterov = true looks ahead along sgd's momentum; "
            'optim.name = "{optim.name}", optim.momentum = {optim.momentum:g}. Take sgd with a momentum, or leave '
            "nesterov out"
        },
        later=True,
    )
    weight_decay: float = option(1e-4, "L2 penalty on the weights", low=0.0)
    decay_norms: bool = option(
        True, "weight_decay also holds for parameters of one dimension: scales of norms, and biases", later=True
    )
    lr_schedule: str = option(
        "cosine",
        "over the run, or over each of schedule.lr_phases; onecycle as torch's OneCycleLR: along a cosine, lr is the "
        "highest, and the momentum stays",
        choices=KINDS,
        refused_if={
            "optim.lr_schedule == 'onecycle' and optim.lr_steps == 'epoch' and (schedule.epochs < 4 or "
            "schedule.lr_phases != 'run')": 'optim.lr_schedule = "onecycle" rises and falls within too few epochs '
            'here; set optim.lr_steps = "step"',
        },
    )
    lr_steps: str = option(
        "epoch", "it goes on with every epoch, or every mini-batch", choices=("epoch", "step"), later=True
    )
    lr_warmup: float = option(
        0.0,
        "first epochs (0.5: half of one) in which the rate rises step by step to lr; cosine, linear and polynomial "
        "begin behind it",
        unit="epochs",
        low=0.0,
        refused_if={
            "schedule.epochs < optim.lr_warmup": "optim.lr_warmup = {optim.lr_warmup:g} is more than "
            "schedule.epochs = {schedule.epochs}",
            "optim.lr_schedule == 'onecycle'": "optim.lr_warmup = {optim.lr_warmup:g}: onecycle rises by itself, in "
            "0.3 of its steps; leave lr_warmup out, or take another optim.lr_schedule",
        },
        later=True,
    )
    lr_power: float = option(1.0, "polynomial: power of what is left", above=0.0, later=True)
    lr_step: int = option(50, "step: epochs between two reductions", unit="epochs", low=1)
    lr_milestones: tuple[int, ...] = option((100, 150), "multistep: epochs of the reductions", unit="epochs", low=0)
    lr_gamma: float = option(0.1, "step and multistep: factor of a reduction", above=0.0)
    accumulate: int = option(
        1,
        "mini-batches whose gradients make one update, the mean over their samples; so does the rest of an epoch",
        unit="mini-batches",
        low=1,
        refused_if={
            "facts.in_flight": "optim.accumulate = {optim.accumulate}: {facts.name} gathers the gradients of "
            "micro-batches; take a data.batch_size so many times as large, with as many method.microbatches and "
            "schedule.microbatches, and leave accumulate out",
            "facts.full_batch": "optim.accumulate = {optim.accumulate}: {facts.name} moves weights once an iteration "
            "over all samples; leave it out",
            "data.batch_size == 0": "optim.accumulate = {optim.accumulate}: with data.batch_size = 0 an epoch has one "
            "mini-batch; leave one of them out",
        },
        later=True,
    )
    label_smoothing: float = option(
        0.0,
        "share of a label that all classes get in equal parts; reported losses are those without it",
        low=0.0,
        high=1.0,
        refused_if=_CROSS_ENTROPY,
        later=True,
    )
    ema: float = option(
        0.0,
        "decay of a moving average of the weights, such as 0.999, which is evaluated beside them; 0: none",
        low=0.0,
        high=0.9999999,
        later=True,
    )
    mixup: float = option(
        0.0,
        "α of Beta(α, α): samples are mixed with others of the mini-batch, in exact epochs and with methods that keep "
        "no variables; targets become shares of the classes; 0: off",
        low=0.0,
        high=1000.0,
        refused_if=_MIXED,
        later=True,
    )
    cutmix: float = option(
        0.0,
        "the same with boxes of images; with both a sample has either",
        low=0.0,
        high=1000.0,
        refused_if=_MIXED,
        later=True,
    )
    clip: float = option(0.0, "largest gradient norm of a stage; 0 does not clip", low=0.0)


@dataclass(frozen=True)
class StoreSection:
    """Where the auxiliary variables live, one file set for each rank."""

    kind: str = option("hdf5", "hdf5 files, or memory", choices=("hdf5", "memory"))
    path: str = option(
        "", 'folder, $VARIABLES allowed; empty: aux/ in the run directory; "scratch": the node\'s own disk'
    )
    dtype: str = option("float32", "type of the stored rows", choices=("float32", "float16", "bfloat16"))


@dataclass(frozen=True)
class CheckpointSection:
    """When a run is saved."""

    every_epochs: int = option(
        1, '0: at the end only; aux = "keep" saves after each parallel epoch in any case', unit="epochs", low=0
    )
    every_minutes: float = option(
        0.0, "and after so long, within an epoch too; 0 ignores the clock", unit="minutes", low=0.0
    )
    keep: int = option(2, "newest complete checkpoints that stay", unit="checkpoints", low=1)
    best: bool = option(
        False,
        "save the best epoch, too, by the accuracy (or the loss) of data.validation or else of the test set, and keep "
        "it; a command finds it as --checkpoint best",
        later=True,
    )
    aux: str = option(
        "keep",
        "auxiliary variables: copied into the checkpoint, kept in the store, or recomputed by a forward pass",
        choices=("copy", "keep", "recompute"),
    )
    changed_code: str = option(
        "refuse",
        "a run whose own network computes something else than when it was saved: refuse to go on, or accept that",
        choices=("refuse", "accept"),
    )


@dataclass(frozen=True)
class RunSection:
    """How the program uses the machine."""

    seed: int = option(0, "initial weights, sample order and augmentation follow from it", low=0)
    stages: int = option(0, "number of stages; 0 takes the number of ranks", unit="stages", low=0, high=1024)
    runner: str = option("mpi", "one rank a stage, or all stages in turn in one process", choices=("mpi", "lockstep"))
    threads: int = option(0, "CPU threads of a rank; 0 takes the node's cores / the ranks on it", unit="threads", low=0)
    device: str = option("auto", "where a stage computes", choices=("auto", "cpu", "cuda"))
    precision: str = option("float32", "bfloat16 runs the forward pass under autocast", choices=("float32", "bfloat16"))
    deterministic: bool = option(False, "the same bits from every start on a GPU, with slower kernels; a CPU has them")
    channels_last: bool = option(True, "memory format of feature maps; faster for convolutions")
    torch_compile: bool = option(False, "compile every block; the same up to rounding; may be slower on CPUs")
    baseline: bool = option(
        True, "time exact steps of the whole network on one rank alone first, for the closing table"
    )
    evaluate_every: int = option(
        1, "epochs from one evaluation of the whole network to the next; the last epoch has one", unit="epochs", low=1
    )
    tensorboard: bool = option(
        False, "write every number to tensorboard/ in the run directory, too; needs that package"
    )
    time_limit: float = option(0.0, "stop after so long with a checkpoint, exit 75; 0: none", unit="minutes", low=0.0)
    stop_before: float = option(
        5.0, "so long before the end of the Slurm job, the same; 0 ignores it", unit="minutes", low=0.0
    )
    stall_limit: float = option(
        30.0, "end the job when a rank has made no progress for so long; 0: never", unit="minutes", low=0.0
    )
