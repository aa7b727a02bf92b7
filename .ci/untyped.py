"""Fails for public names whose types pyright does not know: `untyped.py REPORT`.

REPORT is what `pyright --outputjson --verifytypes vae_attn` prints.
"""

import json
import pathlib
import sys

# What pyright cannot follow: `jax.custom_vjp` and `jax.Device` come without types, and it wants
# the types of a base class repeated in each experiment.
INTERNAL = (
    "vae_attn.experiments.anomaly.experiment.",
    "vae_attn.experiments.disentanglement.experiment.",
    "vae_attn.models.operations.",
    "vae_attn.training.parallel.",
)

report = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
symbols = [one for one in report["typeCompleteness"]["symbols"] if one["isExported"]]
public = [one for one in symbols if not one["name"].startswith(INTERNAL)]
unknown = [one["name"] for one in public if not one["isTypeKnown"] or one["isTypeAmbiguous"]]
print(f"{len(public) - len(unknown)} of {len(public)} public names are fully typed")
if unknown or len(public) < 1000:
    sys.exit("not typed: " + (", ".join(unknown) or "hardly anything was found"))
