"""What the files of a run folder, of a compressed model and of others' checkpoints are called."""

# In a compressed model's folder: how it was made, where its own configuration cannot say it.
RECORD = "umcompress.json"
# In a run folder: whose it is, its recipe as it was given and with all defaults, its results.
RUN = "run.json"
RECIPE = "recipe.yaml"
RESOLVED = "recipe.resolved.yaml"
PLAN = "plan.json"
EXPORT = "export"
REPORT = "report.json"
SWEEP = "sweep.json"
# In the folder of a step: what it did and scored.
STEP = "step.json"
# In a checkpoint of NeMo AutoModel: the folder of the weights under the model's own names.
NEMO_WEIGHTS = "model/consolidated"
