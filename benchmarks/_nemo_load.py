"""A plain BAGEL folder (first argument) in NeMo AutoModel's own class, strictly: each tensor has its place and size.

Run with a Python that finds `nemo_automodel`; only the model's code is imported, which needs torch and transformers.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version


def main() -> int:
    from nemo_automodel.components.models.bagel.model import BagelForUnifiedMultimodal
    from nemo_automodel.components.models.bagel.state_dict_adapter import load_bagel_checkpoint_state_dict

    folder = sys.argv[1]
    model = BagelForUnifiedMultimodal.from_pretrained(folder, stage=2, strict=True)
    tensors = load_bagel_checkpoint_state_dict(folder, stage=2, strict=True)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    try:
        release = version("nemo-automodel")
    except PackageNotFoundError:
        release = "unknown"
    found = {"nemo": release, "tensors": len(tensors), "missing": missing, "unexpected": unexpected}
    print("RESULT " + json.dumps(found))
    return int(bool(missing or unexpected))


if __name__ == "__main__":
    raise SystemExit(main())
