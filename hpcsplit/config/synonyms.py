"""What keys are called elsewhere, so that a near miss by meaning gets the right suggestion.

Words are compared without case, dashes and underscores.  A key that stands here with a section in front means that in
that section only.  Keys that this version does not have are not suggested.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

_SECTIONS = {
    "optim": "optimizer optimiser opt optimization optimisation solver scheduler lrscheduler learningrate",
    "data": "dataset datasets dataloader dataloaders loader input",
    "model": "network net nn arch architecture",
    "method": "algorithm algo strategy",
    "split": "partition partitioning pipeline cut cuts stages",
    "checkpoint": "checkpoints checkpointing ckpt saving save",
    "store": "storage aux auxiliary",
    "run": "runtime system hardware environment device general experiment global misc",
}
_KEYS = {
    "data.name": "dataset datasetname data.type data.set data.dataset",
    "data.root": "data.path data.dir data.folder data.directory datadir datapath dataroot datasetpath rootdir",
    "data.batch_size": "batch bs minibatch minibatchsize trainbatchsize globalbatchsize batchsizetrain",
    "data.augment": "augmentation augmentations dataaugmentation data.transforms data.transform",
    "data.validation": "valsplit validationsplit valsize holdout validationsize valfraction",
    "data.last_batch": "droplast",
    "data.size": "imagesize imgsize inputsize resize resolution",
    "data.workers": "numworkers nworkers workers",
    "data.classes": "numclasses nclasses numlabels vocabsize",
    "data.context": "contextlength blocksize seqlen sequencelength maxlength",
    "model.name": "backbone modelname modeltype model.type model.arch model.architecture model.network model.net arch",
    "model.depth": "numlayers nlayers layers numhiddenlayers hiddenlayers",
    "model.width": "hidden hiddensize hiddendim hiddenunits units neurons",
    "model.loss": "criterion lossfn lossfunction objective",
    "model.class_weights": "classweight lossweights",
    "model.weights": "pretrained pretrainedweights initfrom",
    "split.cuts": "balance partition splits cutpoints boundaries split.points split.at",
    "method.name": "method.type method.algorithm method.method",
    "schedule.epochs": "numepochs nepochs maxepochs totalepochs trainepochs numtrainepochs nbepochs epoch",
    "schedule.microbatches": "microbatch microbatchsize nummicrobatches nmicrobatches chunks",
    "schedule.recompute": "gradientcheckpointing activationcheckpointing remat checkpointactivations",
    "schedule.patience": "earlystopping earlystop earlystoppingpatience stoppatience",
    "optim.name": "optimizer optimiser optimizername optim.type optim.kind optim.algorithm optimizer.type",
    "optim.lr": "learningrate baselr initiallr initlr maxlr peaklr lr0 stepsizeinitial",
    "optim.momentum": "mom sgdmomentum",
    "optim.beta1 and optim.beta2": "betas adambetas",
    "optim.weight_decay": "wd l2 l2reg l2regularization decay weightdecayrate regularization",
    "optim.decay_norms": "nobiasdecay biasweightdecay normweightdecay filterbiasandbn decaybias skipdecay",
    "optim.lr_schedule": "lrscheduler scheduler lrpolicy lrdecay lrscheduletype schedulertype sched optim.schedule "
    "optim.policy scheduler.name scheduler.type scheduler.kind",
    "optim.lr_warmup": "warmupepochs lrwarmupepochs warmupsteps numwarmupsteps warmupiters warmupratio optim.warmup "
    "optimizer.warmup scheduler.warmup scheduler.warmupepochs",
    "schedule.warmup, exact epochs at the start, or optim.lr_warmup": "schedule.warmupepochs",
    "optim.lr_gamma": "gamma decayrate lrdecayrate lrfactor",
    "optim.lr_step": "stepsize lrstepsize lrdecayepochs",
    "optim.lr_milestones": "milestones lrdecaymilestones",
    "optim.lr_power": "power polypower",
    "optim.clip": "gradclip gradientclip clipnorm normclip clipgrad clipgradnorm gradclipnorm gradientclipnorm "
    "gradientclipping gradientclipval maxgradnorm maxnorm clippingnorm",
    "optim.accumulate": "accumulation gradaccum gradaccumsteps gradientaccumulation gradientaccumulationsteps "
    "accumulationsteps accumulategradbatches accumgraditer accumsteps updatefreq",
    "optim.label_smoothing": "labelsmooth smoothing labelsmoothingfactor lsr",
    "optim.mixup": "mixupalpha",
    "optim.cutmix": "cutmixalpha",
    "optim.ema": "emadecay modelema weightsema polyak",
    "checkpoint.every_epochs": "saveevery saveinterval savefreq savefrequency saveeveryepochs checkpointinterval "
    "checkpointevery checkpointfrequency checkpoint.interval checkpoint.every checkpoint.frequency checkpoint.freq",
    "checkpoint.keep": "savetopk keeplast keeplastn maxtokeep maxkeep savetotallimit numkeep",
    "checkpoint.best": "savebest keepbest",
    "run.seed": "randomseed rngseed rng manualseed globalseed",
    "run.stages": "numstages nstages pipelinestages pipelineparallelsize ranks numranks nproc worldsize",
    "run.device": "gpu gpus cuda usegpu usecuda accelerator devices",
    "run.precision": "amp mixedprecision useamp autocast fp16 bf16 halfprecision run.dtype",
    "run.threads": "numthreads nthreads ompnumthreads cpus numcpus",
    "run.torch_compile": "compile usecompile",
    "run.evaluate_every": "evalevery evalinterval evalfreq evalfrequency valinterval validateevery "
    "checkvaleverynepoch evaluationinterval",
    "run.time_limit": "maxtime walltime timebudget",
    "run.tensorboard": "tb usetensorboard tensorboardlog",
}
_HOMES = {word: home for home, words in _SECTIONS.items() for word in words.split()}
_MEANT = {word: key for key, words in _KEYS.items() for word in words.split()}


def meant(section: str, key: str, tree: Mapping[str, Collection[str]]) -> str:
    """The key of `tree`, by section, that section.key means, such as "optim.lr" for optim.learning_rate; or ""."""
    home, word = _home(section), _plain(key)
    for name in (f"{_plain(section)}.{word}", f"{home}.{word}", word):
        if (found := _MEANT.get(name)) and all(_there(part, tree) for part in found.split() if "." in part):
            return found
    if home != section and key in tree.get(home, ()):
        return f"{home}.{key}"
    homes = [name for name in tree if key in tree[name]]
    return f"{homes[0]}.{key}" if len(homes) == 1 and section not in tree else ""


def other_section(section: str, keys: Iterable[str], tree: Mapping[str, Collection[str]]) -> str:
    """What to write for an unknown section and its keys; "" where nobody knows."""
    home = _home(section)
    found = [(key, there) for key in keys if (there := meant(section, key, tree)) and there != f"{home}.{key}"]
    words = [f"; did you mean {home}?"] if home in tree else []
    if found:
        listed = ", ".join(f"{there} for {section}.{key}" for key, there in found)
        words.append(f"{' Write' if words else '; write'} {listed}")
    return "".join(words)


def _there(name: str, tree: Mapping[str, Collection[str]]) -> bool:
    section, _, key = name.strip(",").partition(".")
    return key in tree.get(section, ())


def _home(section: str) -> str:
    return _HOMES.get(_plain(section), section)


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "").replace(" ", "")
