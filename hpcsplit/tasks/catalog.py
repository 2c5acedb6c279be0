"""The one list of tasks: a new one is an entry here, and a file with its class.  Imports nothing heavy."""

TASKS = {  # model.task -> its class
    "classification": "hpcsplit.tasks.task:Classification",
    "generation": "hpcsplit.tasks.generation:Generation",
}
