"""The one list of tasks, and of losses that a task can have in place of its own: a new one is an entry here, and a file
with its class where it is a task.  Imports nothing heavy."""

TASKS = {  # model.task -> its class
    "classification": "hpcsplit.tasks.task:Classification",
    "regression": "hpcsplit.tasks.regression:Regression",
    "language": "hpcsplit.tasks.language:Language",
    "generation": "hpcsplit.tasks.generation:Generation",
}
OF_CLASSES = ("classification", "language")
_OF_NUMBERS = ("classification", "regression")  # of a class: 1 where it is the right one, 0 elsewhere
LOSSES = {  # model.loss -> its function in torch.nn.functional, and the tasks that it fits
    "cross_entropy": ("cross_entropy", OF_CLASSES),
    "mse": ("mse_loss", _OF_NUMBERS),
    "l1": ("l1_loss", _OF_NUMBERS),
    "smooth_l1": ("smooth_l1_loss", _OF_NUMBERS),
    "huber": ("huber_loss", _OF_NUMBERS),
    "bce": ("binary_cross_entropy_with_logits", _OF_NUMBERS),
    "poisson_nll": ("poisson_nll_loss", ("regression",)),
}
