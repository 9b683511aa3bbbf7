"""What each type of GGUF file costs and loses: bits per weight, RMSE, top-1 agreement and KL, of a trained model.

    python kernels/bench/export_types.py                     demo/chat in every type
    python kernels/bench/export_types.py --model FOLDER --types Q8_0 Q4_K_M

Each file is compared with its source in llama.cpp on the prompts of the proof. Small models lose more than large ones:
read the order of the types from it, not the figures that your model will have.
"""

from __future__ import annotations

import argparse
import tempfile

from speechkit.export.compare_types import compare_types
from speechkit.export.mixture import KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/chat", help="a name, a folder or an adapter's folder")
    parser.add_argument("--types", nargs="+", default=list(KINDS), metavar="T", help=f"of {', '.join(KINDS)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(compare_types(arguments.model, folder, arguments.types))


if __name__ == "__main__":
    main()
